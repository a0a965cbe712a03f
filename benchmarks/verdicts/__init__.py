"""Does the verdict know a collapsed encoder from a healthy one? Every row, and faults put in on purpose."""
