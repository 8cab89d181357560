"""What runs on the host: images, QEMU, and a job's way in and out. Standard library only."""
