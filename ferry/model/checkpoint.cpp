#include "ferry/model/checkpoint.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <set>

#include "ferry/core/error.h"

namespace ferry {

Checkpoint Checkpoint::open(const std::filesystem::path& path, bool draft_layer) {
  std::unique_ptr<const TensorSource> source = open_source(path);
  ModelConfig config = load_config(*source);
  if (draft_layer) {
    if (source->packed() != nullptr)
      fail<ConfigError>(
          "--speculate mtp: {} is packed, and has no layer that predicts further tokens; give the "
          "checkpoint that it was made of",
          source->path());
    config = with_draft_layer(std::move(config), source->path());
  }
  Checkpoint checkpoint(std::move(source), std::move(config));
  checkpoint.notes_ = checkpoint.config_.notes;
  checkpoint.find_experts();
  checkpoint.untie();
  for_each_tensor(unstacked(checkpoint.config_),
                  [&](const TensorSpec& spec) { checkpoint.stored_bytes(spec); });
  checkpoint.refuse_unmeant();
  return checkpoint;
}

/// Any family's experts may also lie together by rows, as transformers writes them for itself: the
/// files say.
void Checkpoint::find_experts() {
  MoeConfig& moe = config_.moe;
  const auto sparse = std::ranges::find(config_.layer_kinds, LayerKind::sparse);
  const bool either = moe.storage == ExpertStorage::apart || moe.storage == ExpertStorage::rows;
  if (!either || sparse == config_.layer_kinds.end()) return;
  const auto layer = static_cast<int>(sparse - config_.layer_kinds.begin());
  const bool together =
      source_->find(tensor_name(config_, names().stacked_gate_up, layer)) != nullptr;
  moe.storage = together ? ExpertStorage::rows : ExpertStorage::apart;
}

/// A head of its own beside an embedding that the config calls the head too: as in transformers,
/// the file is believed where the two differ.
void Checkpoint::untie() {
  const SourceTensor* head = source_->find(tensor_name(names(), names().lm_head));
  const SourceTensor* embedding = source_->find(tensor_name(names(), names().embedding));
  if (!config_.tied_embeddings || head == nullptr || embedding == nullptr) return;
  const bool same = head->type == embedding->type && head->shape == embedding->shape &&
                    std::ranges::equal(head->data, embedding->data);
  if (same) return;
  config_.tied_embeddings = false;
  notes_.push_back(
      fmt::format("{}: tie_word_embeddings is true, but {} differs from the embedding: not tied",
                  directory(),
                  head->name));
}

/// A tensor that the family knows, of a layer that there is, and the config says is not there: one
/// of the two is wrong, and without it the model would give other tokens. Layers behind the last
/// one are left out on purpose, or predict further tokens.
void Checkpoint::refuse_unmeant() const {
  const std::string head = tensor_name(names(), names().lm_head);
  for (const std::string& name : unused()) {
    const std::optional<int> layer = known_layer(names(), name);
    if (!layer || *layer >= config_.all_layers()) continue;
    if (name == head && config_.tied_embeddings) continue;
    fail<ModelError>("{}: tensor {}: expected none, as {} says that the model has no such tensor",
                     source_->files()[source_->find(name)->file].path,
                     name,
                     source_->described_by());
  }
}

DType Checkpoint::weight_type() const {
  if (config_.dtype) return *config_.dtype;
  // open() made sure of both.
  return *source_->find(tensor_name(names(), names().embedding))->dtype;
}

/// A vector is one column. Of experts that lie together: where among all.
MatrixPlace Checkpoint::place_of(const TensorSpec& spec) const {
  const bool vector = spec.shape.size() == 1;
  const std::int64_t rows = spec.shape[0];
  MatrixPlace place{.name = spec.name, .rows = rows, .columns = vector ? 1 : spec.shape[1]};
  if (spec.expert < 0 || !config_.moe.stacked()) return place;
  const TensorNames& n = names();
  const auto is = [&](std::string_view pattern) {
    return spec.name == tensor_name(config_, pattern, spec.layer, spec.expert);
  };
  const auto stack = [&](std::string_view matrices, std::string_view biases) {
    return tensor_name(config_, vector ? biases : matrices, spec.layer);
  };
  place.stack = {.experts = config_.moe.experts, .expert = spec.expert, .all_rows = rows};
  place.stack->by_rows = config_.moe.storage == ExpertStorage::rows;
  if (is(n.expert_down) || is(n.expert_down_bias)) {
    place.name = stack(n.stacked_down, n.stacked_down_bias);
    return place;
  }
  place.name = stack(n.stacked_gate_up, n.stacked_gate_up_bias);
  place.stack->all_rows = 2 * rows;
  const bool alternating = config_.moe.storage == ExpertStorage::alternating;
  if (alternating) place.stack->step = 2;
  if (is(n.expert_up) || is(n.expert_up_bias)) place.stack->first = alternating ? 1 : rows;
  return place;
}

StoredMatrix Checkpoint::matrix(const TensorSpec& spec) const {
  const MatrixPlace place = place_of(spec);
  if (spec.shape.size() == 2) return find_matrix(*source_, config_.stored_format.get(), place);
  TensorView vectors;
  if (spec.shape.size() == 3) {  // [rows, 1, columns]
    vectors = tensor(spec);
    vectors.shape = {spec.shape[0], spec.shape[2]};
    return plain_matrix(vectors);
  }
  if (place.stack) {
    const auto [experts, all_rows] = std::pair(place.stack->experts, place.stack->all_rows);
    vectors = source_->elements(place.name, std::array{experts, all_rows});
    vectors.shape = {experts, 1, all_rows};
    return stacked_matrix(vectors, place.rows, *place.stack);
  }
  // Some lie as one row of a matrix.
  const std::vector<std::int64_t> row = {1, place.rows};
  const SourceTensor* stored = source_->find(place.name);
  const bool is_row = stored != nullptr && stored->shape == row;
  vectors = is_row ? source_->elements(place.name, row) : tensor(spec);
  vectors.shape = {place.rows, 1};
  return plain_matrix(vectors);
}

std::uint64_t Checkpoint::stored_bytes(const TensorSpec& spec) const {
  return spec.shape.size() <= 2 ? matrix(spec).bytes() : tensor(spec).bytes;
}

std::vector<std::string> Checkpoint::unused() const {
  std::set<std::string> names;
  for (const SourceTensor& tensor : source_->tensors()) names.insert(tensor.name);
  const StoredFormat* format = config_.stored_format.get();
  for_each_tensor(unstacked(config_), [&](const TensorSpec& spec) {
    const MatrixPlace place = place_of(spec);
    if (format != nullptr && spec.shape.size() == 2 && format->stores(*source_, place)) {
      for (const StoredPart& part : format->parts(*source_, place)) names.erase(part.name);
    } else {
      names.erase(place.name);
    }
  });
  return {names.begin(), names.end()};
}

}  // namespace ferry
