// A model on disk: a source of tensors, what its config says, and that the two agree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/stored_format.h"
#include "ferry/checkpoint/tensor_source.h"
#include "ferry/model/config.h"
#include "ferry/model/family.h"

namespace ferry {

/// Owns the source, with whoever asks for a share; views borrow from it. Opening reads headers
/// only: pages of weights come in when somebody reads them. Threads: const and safe for several.
class Checkpoint {
 public:
  /// Opens the source and checks that every tensor the config asks for is there, with the right
  /// shape and a type that can be loaded, and that there is none which the family knows and the
  /// config does not ask for. Throws ModelError naming file, tensor, what was expected and what was
  /// found.
  /// `draft_layer`: with_draft_layer() of what the config says.
  static Checkpoint open(const std::filesystem::path& path, bool draft_layer = false);

  const std::string& directory() const { return source_->path(); }

  const TensorSource& source() const { return *source_; }

  /// For who keeps what lies in its files.
  std::shared_ptr<const TensorSource> shared_source() const { return source_; }

  const ModelConfig& config() const { return config_; }

  const TensorNames& names() const { return family_of(config_).names; }

  /// The type of the weights as a whole: config.json's, else that of the embedding.
  DType weight_type() const;

  /// The tensor of exactly this shape. Throws ModelError when it is missing, of another shape, or
  /// of a type other than F32, BF16 and F16.
  TensorView tensor(const TensorSpec& spec) const {
    return source_->elements(spec.name, spec.shape);
  }

  /// A matrix, which may be quantised as config.json says, or a vector as one column; those of one
  /// expert also where they lie in a tensor of all. Throws ModelError as tensor() does, also about
  /// scales. REQUIRES: at most two dimensions.
  StoredMatrix matrix(const TensorSpec& spec) const;

  /// Bytes of a tensor that the model needs, its scales included. Throws as the above.
  std::uint64_t stored_bytes(const TensorSpec& spec) const;

  /// What its user should be told: where the config and the tensors contradict each other, and what
  /// was made of it.
  std::span<const std::string> notes() const { return notes_; }

  /// Names of tensors that the model does not use, sorted. They are ignored.
  std::vector<std::string> unused() const;

 private:
  Checkpoint(std::unique_ptr<const TensorSource> source, ModelConfig config)
      : source_(std::move(source)), config_(std::move(config)) {}

  MatrixPlace place_of(const TensorSpec& spec) const;
  void find_experts();
  void untie();
  void refuse_unmeant() const;

  std::shared_ptr<const TensorSource> source_;
  ModelConfig config_;
  std::vector<std::string> notes_;
};

}  // namespace ferry
