"""Every row of the zoo on 10,000 CIFAR-10 images for 10 epochs, three seeds."""
