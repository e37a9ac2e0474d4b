// The tables of a model's tensors, but for those of the mixers, which have their own
// (mixers/mixer.h). tensor_table.h says who reads them.
#pragma once

#include "ferry/model/tensor_table.h"
#include "ferry/model/weights.h"

namespace ferry {

/// What lies before the first layer and behind the last; `table` stands for no layer.
void read_embedding(const ModelConfig& config, TensorTable& table, DenseWeights& to);
void read_head(const ModelConfig& config, TensorTable& table, DenseWeights& to);

/// A layer but for its routed experts; `table` stands for that layer.
DenseWeights::Layer read_layer(const ModelConfig& config, int layer, TensorTable& table);

/// What a layer that predicts further tokens has beside that.
void read_draft(const ModelConfig& config, TensorTable& table, DenseWeights& to);

/// A routed expert, where each has tensors of its own.
FfnPart expert_part(const ModelConfig& config);

}  // namespace ferry
