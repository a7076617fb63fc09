"""Cross-relabelling: labels one data set leaves open are settled by a classifier trained on another that knows them."""
