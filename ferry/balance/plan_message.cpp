#include "ferry/balance/plan_message.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/core/hash.h"

namespace ferry {

namespace {

constexpr std::size_t kHashWords = 2;
constexpr std::size_t kHeadWords = kHashWords + 1;

std::uint64_t hash_of(std::span<const std::int32_t> words) {
  return hash_bytes(std::as_bytes(words.subspan(kHashWords)));
}

}  // namespace

std::size_t PlanShape::words() const {
  return kHeadWords + layers + layers * slots * (shares ? 2 : 1);
}

void write_plan(const PlanShape& shape,
                const PlacementPlan& plan,
                std::span<const int> order,
                std::span<std::int32_t> words) {
  std::int32_t* next = words.data() + kHashWords;
  *next++ = static_cast<std::int32_t>(order.size());
  std::copy(order.begin(), order.end(), next);
  next += shape.layers;
  for (const auto& map : plan.maps) next = std::copy(map.begin(), map.end(), next);
  for (const auto& shares : plan.shares) {
    std::memcpy(next, shares.data(), shares.size() * sizeof(float));
    next += shares.size();
  }
  const std::uint64_t hash = hash_of(words);
  std::memcpy(words.data(), &hash, sizeof(hash));
}

PlanMessage read_plan(const PlanShape& shape, std::span<const std::int32_t> words) {
  std::uint64_t hash = 0;
  std::memcpy(&hash, words.data(), sizeof(hash));
  FERRY_CHECK(hash == hash_of(words), "the plan that came is damaged");
  PlanMessage message;
  const std::int32_t* next = words.data() + kHeadWords;
  message.order.assign(next, next + words[kHashWords]);
  next += shape.layers;
  for (std::size_t layer = 0; layer < shape.layers; ++layer, next += shape.slots)
    message.plan.maps.emplace_back(next, next + shape.slots);
  for (std::size_t layer = 0; shape.shares && layer < shape.layers; ++layer, next += shape.slots) {
    std::vector<float>& shares = message.plan.shares.emplace_back(shape.slots);
    std::memcpy(shares.data(), next, shape.slots * sizeof(float));
  }
  return message;
}

}  // namespace ferry
