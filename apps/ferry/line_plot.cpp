#include "apps/ferry/line_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>

namespace ferry {

namespace {

constexpr double kLeft = 78;
constexpr double kTop = 50;
constexpr double kWidth = 560;
constexpr double kHeight = 400;
constexpr double kBottom = 62;
constexpr double kLegend = 260;
constexpr double kLegendStep = 22;

// Okabe and Ito's colours without black and yellow: told apart by the colour-blind, and on both
// backgrounds. Dashes tell lines apart where there are more than colours.
constexpr std::array<std::string_view, 6> kColours{
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"};
constexpr std::array<std::string_view, 3> kDashes{"none", "7 3", "2 3"};

constexpr std::array<std::string_view, 3> kReferenceDashes{"8 4", "2 4", "12 3 2 3"};

constexpr std::string_view kStyle = R"(<style>
  .page { fill: #ffffff; } .ink { fill: #1c1c1c; } .soft { fill: #5a5a5a; }
  .frame { stroke: #8a8a8a; fill: none; } .grid { stroke: #dddddd; }
  .reference { stroke: #777777; fill: #777777; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161616; } .ink { fill: #eeeeee; } .soft { fill: #b0b0b0; }
    .frame { stroke: #8a8a8a; } .grid { stroke: #383838; }
    .reference { stroke: #a0a0a0; fill: #a0a0a0; }
  }
</style>
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

/// 12,000 as "12k": axes have room for few digits.
std::string short_number(double x) {
  if (x >= 1e6) return fmt::format("{:g}M", x / 1e6);
  if (x >= 1e3) return fmt::format("{:g}k", x / 1e3);
  return fmt::format("{:g}", x);
}

/// A logarithmic axis over [low, high], and the ticks that name its values.
struct Axis {
  double low, high;
  std::vector<double> ticks;

  /// 0..1 from low to high.
  double at(double x) const { return std::log(x / low) / std::log(high / low); }
};

/// The axis for values from `least` to `most`: steps of 1, 2, 5 where few decades leave room, else
/// powers of ten; or powers of two.
Axis make_axis(double least, double most, bool powers_of_two) {
  Axis axis{least, most, {}};
  if (powers_of_two) {
    const int low = static_cast<int>(std::floor(std::log2(least)));
    const int high = std::max(low + 1, static_cast<int>(std::ceil(std::log2(most))));
    axis.low = std::exp2(low);
    axis.high = std::exp2(high);
    for (int power = low; power <= high; power += high - low > 10 ? 2 : 1)
      axis.ticks.push_back(std::exp2(power));
    return axis;
  }
  const bool few = most / least < 2000;
  const std::vector<double> steps = few ? std::vector<double>{1, 2, 5} : std::vector<double>{1};
  const int last_decade = static_cast<int>(std::floor(std::log10(most))) + 1;
  std::vector<double> all;
  for (int decade = static_cast<int>(std::floor(std::log10(least))); decade <= last_decade;
       ++decade)
    for (const double step : steps) all.push_back(std::pow(10, decade) * step);
  const auto first = std::prev(std::upper_bound(all.begin(), all.end(), least));
  auto last = std::lower_bound(all.begin(), all.end(), most);
  if (last == first) ++last;
  axis.ticks.assign(first, last + 1);
  axis.low = axis.ticks.front();
  axis.high = axis.ticks.back();
  return axis;
}

class Writer {
 public:
  Writer(const LinePlot& plot, Axis x, Axis y) : plot_(plot), x_(std::move(x)), y_(std::move(y)) {}

  std::string write() {
    const double width = kLeft + kWidth + kLegend;
    const double legend_height = kTop + static_cast<double>(plot_.lines.size() + 1) * kLegendStep;
    const double height = std::max(kTop + kHeight + kBottom, legend_height);
    print(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n{2}"
        "<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n",
        width,
        height,
        kStyle);
    text(kLeft, 28, "ink", "start", plot_.title, 15);
    axes();
    for (std::size_t i = 0; i < plot_.lines.size(); ++i) line(i);
    svg_ += "</svg>\n";
    return std::move(svg_);
  }

 private:
  template <class... Args>
  void print(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(svg_), format, std::forward<Args>(args)...);
  }

  double left_of(double x) const { return kLeft + x_.at(x) * kWidth; }

  double top_of(double y) const { return kTop + (1 - y_.at(y)) * kHeight; }

  void text(double x,
            double y,
            std::string_view style,
            std::string_view anchor,
            std::string_view words,
            int size = 12) {
    print(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\" text-anchor=\"{}\" font-size=\"{}\">{}"
        "</text>\n",
        x,
        y,
        style,
        anchor,
        size,
        escaped(words));
  }

  void axes() {
    for (const double x : x_.ticks) {
      print("<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>\n",
            left_of(x),
            kTop,
            kTop + kHeight);
      text(left_of(x), kTop + kHeight + 18, "ink", "middle", short_number(x));
    }
    for (const double y : y_.ticks) {
      print("<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>\n",
            kLeft,
            kLeft + kWidth,
            top_of(y));
      text(kLeft - 8, top_of(y) + 4, "ink", "end", short_number(y));
    }
    print("<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n",
          kLeft,
          kTop,
          kWidth,
          kHeight);
    text(kLeft + kWidth / 2, kTop + kHeight + 44, "soft", "middle", plot_.x_label);
    print(
        "<text class=\"soft\" text-anchor=\"middle\" transform=\"translate(22,{:.1f}) "
        "rotate(-90)\">{}</text>\n",
        kTop + kHeight / 2,
        escaped(plot_.y_label));
  }

  void line(std::size_t i) {
    const LinePlot::Line& line = plot_.lines[i];
    const std::string_view colour = kColours[i % kColours.size()];
    const std::string style =
        line.reference
            ? fmt::format("class=\"reference\" stroke-dasharray=\"{}\"", reference_dash(i))
            : fmt::format("stroke=\"{0}\" fill=\"{0}\" stroke-dasharray=\"{1}\"",
                          colour,
                          kDashes[i / kColours.size() % kDashes.size()]);
    print("<g {} stroke-width=\"2\">\n<polyline fill=\"none\" style=\"fill:none\" points=\"",
          style);
    for (std::size_t p = 0; p < line.x.size(); ++p)
      print("{}{:.1f},{:.1f}", p == 0 ? "" : " ", left_of(line.x[p]), top_of(line.y[p]));
    print("\"/>\n");
    if (!line.reference)
      for (std::size_t p = 0; p < line.x.size(); ++p)
        print("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" stroke=\"none\"/>\n",
              left_of(line.x[p]),
              top_of(line.y[p]));
    const double x = kLeft + kWidth + 18;
    const double y = kTop + (static_cast<double>(i) + 0.5) * kLegendStep;
    print(
        "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n</g>\n", x, x + 28, y, y);
    text(x + 36, y + 4, "ink", "start", line.name);
  }

  /// References share a colour, so their dashes tell them apart.
  std::string_view reference_dash(std::size_t i) const {
    const auto before = std::count_if(plot_.lines.begin(),
                                      plot_.lines.begin() + static_cast<std::ptrdiff_t>(i),
                                      [](const auto& l) { return l.reference; });
    return kReferenceDashes[static_cast<std::size_t>(before) % kReferenceDashes.size()];
  }

  const LinePlot& plot_;
  Axis x_, y_;
  std::string svg_;
};

}  // namespace

std::string line_plot_svg(const LinePlot& plot) {
  double least_x = std::numeric_limits<double>::infinity();
  double least_y = least_x;
  double most_x = 0;
  double most_y = 0;
  for (const LinePlot::Line& line : plot.lines) {
    for (const double x : line.x) least_x = std::min(least_x, x), most_x = std::max(most_x, x);
    for (const double y : line.y) least_y = std::min(least_y, y), most_y = std::max(most_y, y);
  }
  return Writer(plot, make_axis(least_x, most_x, true), make_axis(least_y, most_y, false)).write();
}

}  // namespace ferry
