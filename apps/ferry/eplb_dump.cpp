#include "apps/ferry/eplb_dump.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/model/json_file.h"

namespace ferry {

namespace {

using nlohmann::json;

constexpr double kMaxCount = 1e15;  // sums stay exact enough, and finite

/// The array `value`, of `size` elements where that is not 0.
const json& array(const json& value,
                  std::size_t size,
                  const std::string& file,
                  const std::string& what) {
  if (!value.is_array() || value.empty()) {
    fail<ModelError>(
        "{}: {} is {}: expected an array that is not empty", file, what, describe(value));
  }
  if (size != 0 && value.size() != size) {
    fail<ModelError>("{}: {} has {} elements, those before it {}", file, what, value.size(), size);
  }
  return value;
}

double read_count(const json& value, const std::string& file, const std::string& what) {
  const double count =
      value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(count >= 0 && count <= kMaxCount)) {
    fail<ModelError>("{}: {} holds {}: expected a number from 0 to {:g}",
                     file,
                     what,
                     describe(value),
                     kMaxCount);
  }
  return count;
}

/// One step: [layer][expert]. `like`: an earlier step to agree with, or null.
ExpertLoad read_step(const json& value,
                     const ExpertLoad* like,
                     const std::string& file,
                     const std::string& what) {
  array(value, like == nullptr ? 0 : static_cast<std::size_t>(like->layers), file, what);
  const std::size_t experts = like != nullptr ? static_cast<std::size_t>(like->experts)
                                              : array(value.front(), 0, file, what + "[0]").size();
  ExpertLoad load(static_cast<int>(value.size()), static_cast<int>(experts));
  auto count = load.counts.begin();
  for (std::size_t l = 0; l < value.size(); ++l) {
    const std::string place = fmt::format("{}[{}]", what, l);
    for (const json& number : array(value[l], experts, file, place))
      *count++ = read_count(number, file, place);
  }
  return load;
}

std::vector<std::vector<ExpertId>> read_map(const json& value,
                                            const ExpertLoad& load,
                                            const std::string& file) {
  const std::string key = "physical_to_logical_map";
  array(value, 0, file, key);
  if (value.size() != static_cast<std::size_t>(load.layers)) {
    fail<ModelError>(
        "{}: {} has {} layers, logical_count {}", file, key, value.size(), load.layers);
  }
  std::vector<std::vector<ExpertId>> map(value.size());
  for (std::size_t l = 0; l < value.size(); ++l) {
    const std::string place = fmt::format("{}[{}]", key, l);
    for (const json& id : array(value[l], map.front().size(), file, place)) {
      const bool fits = id.is_number_integer() && id.get<double>() >= -1 &&
                        id.get<double>() < static_cast<double>(load.experts);
      if (!fits) {
        fail<ModelError>("{}: {} holds {}: expected an expert from 0 to {}, or -1",
                         file,
                         place,
                         describe(id),
                         load.experts - 1);
      }
      map[l].push_back(id.get<ExpertId>());
    }
    std::vector<bool> present(static_cast<std::size_t>(load.experts), false);
    for (const ExpertId e : map[l])
      if (e >= 0) present[static_cast<std::size_t>(e)] = true;
    if (const auto lost = std::find(present.begin(), present.end(), false); lost != present.end())
      fail<ModelError>("{}: {} has no slot for expert {}", file, place, lost - present.begin());
  }
  return map;
}

}  // namespace

LoadDump read_load_dump(const std::string& file) {
  const json dump = parse_json(read_text_file(file), file);
  if (!dump.is_object() || !dump.contains("logical_count"))
    fail<ModelError>("{}: expected an object with the key logical_count", file);
  const std::string key = "logical_count";
  const json& counts = array(dump["logical_count"], 0, file, key);
  const json& first = array(counts.front(), 0, file, key + "[0]");
  LoadDump result;
  if (first.front().is_array()) {
    for (std::size_t step = 0; step < counts.size(); ++step) {
      const ExpertLoad* like = step == 0 ? nullptr : &result.steps.front();
      ExpertLoad load = read_step(counts[step], like, file, fmt::format("{}[{}]", key, step));
      result.steps.push_back(std::move(load));
    }
  } else {
    result.steps.push_back(read_step(counts, nullptr, file, key));
  }
  if (const auto map = dump.find("physical_to_logical_map"); map != dump.end() && !map->is_null())
    result.physical_to_logical_map = read_map(*map, result.steps.front(), file);
  return result;
}

ExpertLoad total_load(const Trace& steps) {
  ExpertLoad sum = steps.front();
  for (std::size_t step = 1; step < steps.size(); ++step) {
    const std::vector<double>& counts = steps[step].counts;
    std::transform(
        counts.begin(), counts.end(), sum.counts.begin(), sum.counts.begin(), std::plus<>());
  }
  return sum;
}

}  // namespace ferry
