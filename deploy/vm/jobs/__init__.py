"""Jobs that are no tests. A job imports `deploy.vm.guest`, swapfs and its own folder."""
