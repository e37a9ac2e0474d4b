// The rotary embedding as config.json describes it, in the forms of transformers 4 and 5.
#include <fmt/core.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/core/portable_math.h"
#include "ferry/model/rope.h"

namespace ferry {

namespace {

RopeScaling read_scaling(const ConfigReader& in) {
  const char* key = in.has("rope_type") ? "rope_type" : "type";
  const std::string name = in.text_or(key, "default");
  if (name == "default") return RopeScaling::none;
  if (name == "linear") return RopeScaling::linear;
  if (name == "llama3") return RopeScaling::llama3;
  if (name == "yarn") return RopeScaling::yarn;
  if (name == "dynamic" && in.has("alpha")) return RopeScaling::none;
  in.refuse(key, "\"default\", \"linear\", \"llama3\", \"yarn\", or \"dynamic\" with an alpha");
}

void read_yarn(const ConfigReader& in, RopeOptions& rope) {
  rope.high_turns = in.positive_or("beta_fast", 32);
  rope.low_turns = in.positive_or("beta_slow", 1);
  rope.whole_pairs = in.flag_or("truncate", true);
  const double mscale = in.from_zero_or("mscale", 0);
  rope.mscale_all_dim = in.from_zero_or("mscale_all_dim", 0);
  rope.magnitude =
      mscale != 0 && rope.mscale_all_dim != 0
          ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
          : yarn_mscale(rope.factor, 1);
  rope.magnitude = in.positive_or("attention_factor", rope.magnitude);
}

/// One entry for each type of layers, instead of values.
void refuse_parts(const ConfigReader& in) {
  for (const auto& [key, value] : in.fields().items()) {
    if (value.is_object())
      in.refuse(key, "a value: rotary embeddings that differ between layers are not supported");
  }
}

/// `in`: rope_parameters or rope_scaling.
void read_scaled(const ConfigReader& in, int max_positions, RopeOptions& rope) {
  rope.theta = in.positive_or("rope_theta", rope.theta);
  rope.scaling = read_scaling(in);
  if (rope.scaling == RopeScaling::none) return;
  rope.original_positions = in.positive_or("original_max_position_embeddings", max_positions);
  if (in.has("factor") || rope.scaling != RopeScaling::yarn) {
    rope.factor = in.positive("factor");
  } else {
    rope.factor = max_positions / rope.original_positions;
  }
  if (rope.scaling == RopeScaling::yarn) read_yarn(in, rope);
  if (rope.scaling == RopeScaling::llama3) {
    rope.low_turns = in.positive("low_freq_factor");
    rope.high_turns = in.positive("high_freq_factor");
    if (rope.high_turns < rope.low_turns)
      in.refuse("high_freq_factor", fmt::format("at least low_freq_factor {}", rope.low_turns));
  }
}

}  // namespace

RopeOptions read_rope(const ConfigReader& in, int head_dim, int max_positions, int turned) {
  RopeOptions rope;
  double part = turned == 0 ? 1.0 : static_cast<double>(turned) / head_dim;
  double alpha = 1.0;
  rope.theta = in.positive_or("rope_theta", rope.theta);
  part = in.positive_or("partial_rotary_factor", part);
  const auto take = [&](const ConfigReader& parameters) {
    refuse_parts(parameters);
    read_scaled(parameters, max_positions, rope);
    part = parameters.positive_or("partial_rotary_factor", part);
    if (parameters.text_or("rope_type", parameters.text_or("type", "")) == "dynamic")
      alpha = parameters.positive("alpha");
  };
  bool stated = false;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!in.states(key)) continue;
    take(in.object(key));
    stated = true;
  }
  // A class with a scaling of its own means that one where the file has none, also by null.
  const auto fallback = in.default_object("rope_parameters");
  if (!stated && fallback) take(*fallback);
  rope.dim = turned == 0 ? static_cast<int>(head_dim * part)
                         : static_cast<int>(std::lround(head_dim * part));
  if (part > 1 || rope.dim < 2 || rope.dim % 2 != 0) {
    in.refuse("partial_rotary_factor",
              fmt::format("a part of {} elements that is even and not 0", head_dim));
  }
  if (turned != 0 && rope.dim != turned)
    in.refuse("partial_rotary_factor", fmt::format("{} of {} elements", turned, head_dim));
  if (alpha != 1) {
    if (rope.dim == 2) in.refuse("alpha", "1 where 2 elements turn");
    rope.theta *= power(alpha, static_cast<double>(rope.dim) / (rope.dim - 2));
  }
  if (rope.scaling == RopeScaling::yarn && rope.theta <= 1)
    in.refuse("rope_theta", "more than 1 for yarn");
  return rope;
}

}  // namespace ferry
