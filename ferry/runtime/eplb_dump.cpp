#include "ferry/runtime/eplb_dump.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

using nlohmann::json;

const std::string kMapKey = "physical_to_logical_map";
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

/// A row of expert ids or -1. `experts`: their number, 0 where it is not known.
std::vector<ExpertId> read_slots(const json& value,
                                 std::size_t size,
                                 int experts,
                                 const std::string& file,
                                 const std::string& place) {
  constexpr int kMaxExperts = 1 << 20;
  const int most = (experts > 0 ? experts : kMaxExperts) - 1;
  std::vector<ExpertId> slots;
  for (const json& id : array(value, size, file, place)) {
    if (!id.is_number_integer() || id.get<double>() < -1 || id.get<double>() > most) {
      fail<ModelError>("{}: {} holds {}: expected an expert from 0 to {}, or -1",
                       file,
                       place,
                       describe(id),
                       most);
    }
    slots.push_back(id.get<ExpertId>());
  }
  return slots;
}

/// [layer][slot] with as many slots in each layer.
std::vector<std::vector<ExpertId>> read_maps(const json& value,
                                             int experts,
                                             const std::string& file) {
  std::vector<std::vector<ExpertId>> map;
  for (const json& layer : array(value, 0, file, kMapKey)) {
    const std::string place = fmt::format("{}[{}]", kMapKey, map.size());
    map.push_back(read_slots(layer, map.empty() ? 0 : map.front().size(), experts, file, place));
  }
  return map;
}

std::vector<std::vector<ExpertId>> read_map(const json& value,
                                            const ExpertLoad& load,
                                            const std::string& file) {
  std::vector<std::vector<ExpertId>> map = read_maps(value, load.experts, file);
  if (map.size() != static_cast<std::size_t>(load.layers)) {
    fail<ModelError>(
        "{}: {} has {} layers, logical_count {}", file, kMapKey, map.size(), load.layers);
  }
  for (std::size_t l = 0; l < map.size(); ++l) {
    std::vector<bool> present(static_cast<std::size_t>(load.experts), false);
    for (const ExpertId e : map[l])
      if (e >= 0) present[static_cast<std::size_t>(e)] = true;
    if (const auto lost = std::find(present.begin(), present.end(), false); lost != present.end())
      fail<ModelError>(
          "{}: {}[{}] has no slot for expert {}", file, kMapKey, l, lost - present.begin());
  }
  return map;
}

/// The objects of `list` by their id under `key`, which must be 0, 1, ... in any order.
std::vector<const json*> by_id(const json& list,
                               const char* key,
                               const std::string& file,
                               const std::string& what) {
  std::vector<const json*> sorted(array(list, 0, file, what).size(), nullptr);
  for (const json& entry : list) {
    const auto id = entry.is_object() ? entry.find(key) : entry.end();
    const bool fits = entry.is_object() && id != entry.end() && id->is_number_integer() &&
                      id->get<double>() >= 0 &&
                      id->get<double>() < static_cast<double>(sorted.size());
    if (!fits || sorted[id->get<std::size_t>()] != nullptr) {
      fail<ModelError>(
          "{}: {} needs one object for each {} from 0 to {}", file, what, key, sorted.size() - 1);
    }
    sorted[id->get<std::size_t>()] = &entry;
  }
  return sorted;
}

/// Throws unless `object` says `number` under `key`, or nothing.
void check_number(const json& object,
                  const char* key,
                  std::size_t number,
                  const std::string& file,
                  const std::string& what) {
  const auto said = object.find(key);
  if (said != object.end() && *said != number)
    fail<ModelError>("{}: {} is {}, {} are there", file, what, describe(*said), number);
}

std::vector<std::vector<ExpertId>> read_layer_list(const json& root,
                                                   int ranks,
                                                   const std::string& file) {
  const std::vector<const json*> layers = by_id(root["layer_list"], "layer_id", file, "layer_list");
  check_number(root, "moe_layer_count", layers.size(), file, "moe_layer_count");
  std::vector<std::vector<ExpertId>> map(layers.size());
  std::size_t per_device = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string place = fmt::format("layer_id {}", l);
    if (!layers[l]->contains("device_list"))
      fail<ModelError>("{}: {} has no device_list", file, place);
    const std::vector<const json*> devices =
        by_id((*layers[l])["device_list"], "device_id", file, place + ", device_list");
    check_number(*layers[l], "device_count", devices.size(), file, place + ", device_count");
    if (devices.size() != static_cast<std::size_t>(ranks))
      fail<ModelError>("{}: {} has {} devices, not {} ranks", file, place, devices.size(), ranks);
    for (std::size_t d = 0; d < devices.size(); ++d) {
      const std::string device = fmt::format("{}, device_id {}", place, d);
      if (!devices[d]->contains("device_expert"))
        fail<ModelError>("{}: {} has no device_expert", file, device);
      const std::vector<ExpertId> slots =
          read_slots((*devices[d])["device_expert"], per_device, 0, file, device);
      per_device = slots.size();
      map[l].insert(map[l].end(), slots.begin(), slots.end());
    }
  }
  return map;
}

}  // namespace

std::vector<std::vector<ExpertId>> read_placement(const std::string& file, int ranks) {
  const json root = parse_json(read_text_file(file), file);
  if (root.is_object() && root.contains("layer_list")) return read_layer_list(root, ranks, file);
  if (root.is_object() && root.contains(kMapKey)) return read_maps(root[kMapKey], 0, file);
  fail<ModelError>("{}: expected an object with the key {} or layer_list", file, kMapKey);
}

std::optional<std::vector<std::vector<float>>> read_shares(const std::string& file) {
  const json root = parse_json(read_text_file(file), file);
  const auto found = root.is_object() ? root.find("shares") : root.end();
  if (found == root.end() || found->is_null()) return std::nullopt;
  std::vector<std::vector<float>> shares;
  for (const json& layer : array(*found, 0, file, "shares")) {
    const std::string place = fmt::format("shares[{}]", shares.size());
    std::vector<float>& row = shares.emplace_back();
    for (const json& share : array(layer, 0, file, place))
      row.push_back(static_cast<float>(read_count(share, file, place)));
  }
  return shares;
}

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
  if (const auto map = dump.find(kMapKey); map != dump.end() && !map->is_null())
    result.physical_to_logical_map = read_map(*map, result.steps.front(), file);
  return result;
}

}  // namespace ferry
