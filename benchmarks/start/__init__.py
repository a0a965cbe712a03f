"""Whether continuing an encoder on a few images pays: its frozen start, continued, and from scratch."""
