// A checkpoint directory in Hugging Face layout: config.json and one model.safetensors, or several
// shards with model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/checkpoint/stored_matrix.h"
#include "ferry/model/config.h"
#include "ferry/model/family.h"

namespace ferry {

/// Owns the mappings; views borrow from it. Opening reads headers only: pages of weights come in
/// when somebody reads them. Threads: const and safe for several.
class Checkpoint {
 public:
  /// Opens the directory and checks that every tensor the config asks for is there, with the right
  /// shape and a type that can be loaded. Throws ModelError naming file, tensor, what was expected
  /// and what was found.
  static Checkpoint open(const std::filesystem::path& directory);

  const std::string& directory() const { return directory_; }

  const ModelConfig& config() const { return config_; }

  const TensorNames& names() const { return family_of(config_).names; }

  /// The type of the weights as a whole: config.json's, else that of the embedding.
  DType weight_type() const;

  bool has(std::string_view name) const { return find(name) != nullptr; }

  /// The tensor of exactly this shape. Throws ModelError when it is missing, of another shape, or
  /// of a type other than F32, BF16 and F16.
  TensorView tensor(std::string_view name, std::span<const std::int64_t> shape) const;

  TensorView tensor(const TensorSpec& spec) const { return tensor(spec.name, spec.shape); }

  /// A matrix, which may be quantised as config.json says, or a vector as one column; those of one
  /// expert also where they lie in a tensor of all. Throws ModelError as tensor() does, also about
  /// scales. REQUIRES: at most two dimensions.
  StoredMatrix matrix(const TensorSpec& spec) const;

  /// Bytes of a tensor that the model needs, its scales included. Throws as the above.
  std::uint64_t stored_bytes(const TensorSpec& spec) const;

  /// Every tensor in the files, also those that the model does not use.
  std::vector<const SafetensorsFile::Entry*> entries() const;

  /// Names of tensors that the model does not use, sorted. They are ignored.
  std::vector<std::string> unused() const;

  std::span<const SafetensorsFile> files() const { return files_; }

 private:
  struct Place {
    std::size_t file = 0;
    const SafetensorsFile::Entry* entry = nullptr;  // of files_[file]
  };

  Checkpoint() = default;
  void open_files(const std::filesystem::path& directory);
  void open_shards(const std::filesystem::path& index);
  void check() const;
  StoredMatrix matrix(std::string_view name, std::int64_t rows, std::int64_t columns) const;
  StoredMatrix stacked(const TensorSpec& spec) const;
  std::span<const std::byte> bytes(std::string_view name,
                                   std::span<const std::int64_t> shape) const;
  const Place* find(std::string_view name) const;
  const Place& find(std::string_view name, std::span<const std::int64_t> shape) const;

  std::string directory_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string_view, Place> tensors_;  // keys borrow from the entries
};

}  // namespace ferry
