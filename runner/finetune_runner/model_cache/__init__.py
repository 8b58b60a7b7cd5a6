"""Base models on a disk that pods share: filled once per revision under a lock, verified, and then only read."""
