"""Tests the verdict on every row and on deliberate faults: missed collapses and false alarms."""
