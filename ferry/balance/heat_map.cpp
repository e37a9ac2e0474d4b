#include "ferry/balance/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <string_view>

namespace ferry {

namespace {

constexpr std::string_view kShades =
    " .:-=+*#%@";  // one for each 0.2 of the mean, the last for all above

char shade(double cell) {
  const auto i = static_cast<std::size_t>(std::clamp(cell * 5, 0.0, 9.0));
  return kShades[i];
}

struct Colour {
  double red, green, blue;
};

/// Pale where idle, blue-green at the mean, dark red from twice the mean on.
std::string colour(double cell) {
  constexpr std::array<Colour, 5> kStops{
      {{247, 247, 240}, {170, 215, 205}, {66, 150, 170}, {240, 150, 60}, {165, 20, 40}}};
  const double x = std::clamp(cell * 2, 0.0, 4.0);
  const auto i = std::min<std::size_t>(static_cast<std::size_t>(x), kStops.size() - 2);
  const double f = x - static_cast<double>(i);
  const auto mix = [&](double a, double b) { return static_cast<int>(a + f * (b - a)); };
  return fmt::format("#{:02x}{:02x}{:02x}",
                     mix(kStops[i].red, kStops[i + 1].red),
                     mix(kStops[i].green, kStops[i + 1].green),
                     mix(kStops[i].blue, kStops[i + 1].blue));
}

constexpr double kPanel = 420;  // width of the cells of one map
constexpr double kLeft = 46;
constexpr double kTop = 48;
constexpr double kGap = 60;
constexpr double kBottom = 84;

double max_over_mean(const HeatMap& map, int layer) {
  double max = 0;
  for (int r = 0; r < map.ranks; ++r) max = std::max(max, map.cell(layer, r));
  return max;
}

void draw_panel(std::string& svg, const HeatMap& map, double left, double cell_height) {
  const double cell_width = kPanel / map.ranks;
  auto out = std::back_inserter(svg);
  double mean_of_max = 0;
  for (int l = 0; l < map.layers; ++l) mean_of_max += max_over_mean(map, l) / map.layers;
  fmt::format_to(out,
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"14\">{} (max/mean {:.2f})</text>\n",
                 left,
                 kTop - 14,
                 map.title,
                 mean_of_max);
  for (int l = 0; l < map.layers; ++l) {
    for (int r = 0; r < map.ranks; ++r) {
      fmt::format_to(out,
                     "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" "
                     "fill=\"{}\"/>\n",
                     left + r * cell_width,
                     kTop + l * cell_height,
                     cell_width,
                     cell_height,
                     colour(map.cell(l, r)));
    }
  }
  const double bottom = kTop + map.layers * cell_height;
  fmt::format_to(out,
                 "<text x=\"{:.1f}\" y=\"{:.1f}\">rank 0</text>\n"
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">rank {}</text>\n"
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">0</text>\n"
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n"
                 "<text transform=\"translate({:.1f},{:.1f}) rotate(-90)\" "
                 "text-anchor=\"middle\">layer</text>\n",
                 left,
                 bottom + 15,
                 left + kPanel,
                 bottom + 15,
                 map.ranks - 1,
                 left - 5,
                 kTop + 10,
                 left - 5,
                 bottom,
                 map.layers - 1,
                 left - 26,
                 (kTop + bottom) / 2);
}

void draw_legend(std::string& svg, double top) {
  constexpr int kSteps = 40;
  constexpr double kWidth = 5;
  auto out = std::back_inserter(svg);
  for (int i = 0; i < kSteps; ++i)
    fmt::format_to(out,
                   "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"12\" fill=\"{}\"/>\n",
                   kLeft + i * kWidth,
                   top,
                   kWidth + 0.3,
                   colour(2.0 * (i + 0.5) / kSteps));
  for (int i = 0; i <= 2; ++i)
    fmt::format_to(out,
                   "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}{}</text>\n",
                   kLeft + i * kSteps * kWidth / 2,
                   top + 26,
                   i,
                   i == 2 ? "+" : "");
  fmt::format_to(out,
                 "<text x=\"{:.1f}\" y=\"{:.1f}\">load of a rank over the mean of its layer"
                 "</text>\n",
                 kLeft + kSteps * kWidth + 20,
                 top + 11);
}

}  // namespace

HeatMap make_heat_map(std::string title, const ExpertLoad& load, const ExpertPlacement& placement) {
  HeatMap map{std::move(title), load.layers, placement.ranks(), {}};
  for (int l = 0; l < load.layers; ++l) {
    const std::vector<double> loads =
        rank_loads(load.layer(l), placement.physical_to_logical(l), map.ranks);
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / map.ranks;
    for (const double x : loads) map.cells.push_back(mean > 0 ? x / mean : 1);
  }
  return map;
}

std::string heat_map_text(const HeatMap& map, int columns) {
  const int folded = (map.ranks + columns - 1) / columns;  // ranks that share a character
  std::string text = fmt::format("{}: load over the layer's mean, each of \"{}\" is 0.2{}\n",
                                 map.title,
                                 kShades,
                                 folded > 1 ? fmt::format(", {} ranks a character", folded) : "");
  for (int l = 0; l < map.layers; ++l) {
    text += fmt::format("{:>5} |", l);
    for (int first = 0; first < map.ranks; first += folded) {
      double most = 0;
      for (int r = first; r < std::min(first + folded, map.ranks); ++r)
        most = std::max(most, map.cell(l, r));
      text += shade(most);
    }
    text += fmt::format("| {:.2f}\n", max_over_mean(map, l));
  }
  return text;
}

std::string heat_map_svg(const std::vector<HeatMap>& maps) {
  int layers = 1;
  for (const HeatMap& map : maps) layers = std::max(layers, map.layers);
  const double cell_height = std::clamp(480.0 / layers, 4.0, 24.0);
  const double width = kLeft + static_cast<double>(maps.size()) * (kPanel + kGap);
  const double height = kTop + layers * cell_height + kBottom;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"11\" "
      "shape-rendering=\"crispEdges\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width,
      height);
  double left = kLeft;
  for (const HeatMap& map : maps) {
    draw_panel(svg, map, left, cell_height);
    left += kPanel + kGap;
  }
  draw_legend(svg, kTop + layers * cell_height + 36);
  return svg + "</svg>\n";
}

}  // namespace ferry
