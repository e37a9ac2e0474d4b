// Lines over logarithmic axes as one SVG picture, readable on light and on dark pages.
#pragma once

#include <string>
#include <vector>

namespace ferry {

struct LinePlot {
  struct Line {
    std::string name;
    std::vector<double> x, y;  ///< positive; x rising
    bool reference = false;    ///< grey and dashed: not one of those compared
  };

  std::string title;
  std::string x_label;  ///< with its unit
  std::string y_label;
  std::vector<Line> lines;
};

/// REQUIRES: a line with a point.
std::string line_plot_svg(const LinePlot& plot);

}  // namespace ferry
