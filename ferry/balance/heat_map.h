// Heat maps of load: layers down, ranks across, each cell a rank's load over its layer's mean.
#pragma once

#include <string>
#include <vector>

#include "ferry/expert_load.h"

namespace ferry {

struct HeatMap {
  std::string title;
  int layers = 0;
  int ranks = 0;
  std::vector<double> cells;  // [layer][rank], 1 = the layer's mean

  double cell(int layer, int rank) const {
    return cells[static_cast<std::size_t>(layer) * static_cast<std::size_t>(ranks) +
                 static_cast<std::size_t>(rank)];
  }
};

HeatMap make_heat_map(std::string title, const ExpertLoad& load, const ExpertPlacement& placement);

/// Lines of text, one a layer, with each layer's max over mean at the end. More ranks than fit into
/// `columns` share a character, which shows the most loaded of them.
std::string heat_map_text(const HeatMap& map, int columns = 96);

/// The maps side by side in one SVG picture, with one scale.
std::string heat_map_svg(const std::vector<HeatMap>& maps);

}  // namespace ferry
