# Cross-K with border correction and nearest-neighbour distances of spatial_points.csv, by spatstat.
#
#   Rscript spatial_spatstat.R > spatial_spatstat.csv
#
# The committed numbers were made with the versions that the first line of the output names.
suppressPackageStartupMessages(library(spatstat.explore))
options(digits = 12)
points <- read.csv("spatial_points.csv")
# spatstat wants outlines anticlockwise.
window <- owin(poly = list(x = c(0, 1000, 1000, 400, 400, 0), y = c(0, 0, 400, 400, 900, 900)))
pattern <- ppp(points$x, points$y, window = window, marks = factor(points$type))
cat("# spatstat.explore", paste0(packageVersion("spatstat.explore"), "\n"))
cat("quantity,from,to,radius_um,value\n")
# A fine step, for spatstat knows the distances from the border only to within one; and one that no distance between
# hundredths is a multiple of.
fine <- 0.002503 * 0:40000
radii <- c(2000, 4000, 8000, 12000, 16000, 19900, 30100, 39900)
for (i in c("a", "b", "c")) for (j in c("a", "b", "c")) {
  found <- Kcross(pattern, i, j, r = fine, correction = "border")
  for (n in radii) cat("k_um2", i, j, fine[n + 1], format(found$border[n + 1]), sep = ",", fill = TRUE)
  if (i == j) distances <- nndist(pattern[marks(pattern) == i])
  else distances <- nncross(pattern[marks(pattern) == i], pattern[marks(pattern) == j])$dist
  cat("nearest_mean_um", i, j, "", format(mean(distances)), sep = ",", fill = TRUE)
  cat("nearest_median_um", i, j, "", format(median(distances)), sep = ",", fill = TRUE)
}
