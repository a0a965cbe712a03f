"""The figures of the RDM paper, from our own runs on CIFAR-10."""
