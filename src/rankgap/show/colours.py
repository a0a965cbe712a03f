"""Colours of all pictures: Okabe and Ito's, which the colour-blind tell apart."""

ONLINE, TARGET = "#D55E00", "#0072B2"  # vermilion, blue
GROWS, COLLAPSES = "#56B4E9", "#CC79A7"  # sky blue, reddish purple (hatched too)
KNN, LINEAR = "#009E73", "#000000"
GREY = "#595959"
