"""The colours of every picture and page: Okabe and Ito's, which colour-blind readers can tell apart."""

from rankgap.notebook import ONLINE as ONLINE
from rankgap.notebook import TARGET as TARGET

GROWS, COLLAPSES = "#56B4E9", "#CC79A7"  # sky blue, reddish purple (also hatched)
KNN, LINEAR = "#009E73", "#000000"
GREY = "#595959"
AXIS, GRID = "#BFBFBF", "#E6E6E6"  # of figures, on white paper

# Groups of points, by day and by night; groups of one colour have other marks.
GROUPS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D")

# The report's page, by day and by night: the names are those of its CSS variables.
LIGHT = {
    "paper": "#FFFFFF",
    "ink": "#1B1B1B",
    "muted": GREY,
    "line": "#D9D9D9",
    "grid": "#ECECEC",
    "card": "#FAFAFA",
    "online": ONLINE,
    "target": TARGET,
    "knn": KNN,
    "lr": "#7A5195",
    "healthy": "#00704F",
    "alarm": "#A34700",
    "collapsed": "#B00020",
}
DARK = {
    "paper": "#14171A",
    "ink": "#ECECEC",
    "muted": "#A8ADB3",
    "line": "#3A4046",
    "grid": "#2A2F34",
    "card": "#1B1F23",
    "online": "#F28A3C",
    "target": GROWS,
    "knn": "#2FC79A",
    "lr": "#C9A0DC",
    "healthy": "#2FC79A",
    "alarm": "#F0A35E",
    "collapsed": "#FF8A80",
}
