#include "ferry/checkpoint/tensor_source.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "ferry/checkpoint/directory_source.h"
#include "ferry/checkpoint/gguf/gguf_source.h"
#include "ferry/checkpoint/packed_directory.h"
#include "ferry/checkpoint/safetensors_directory.h"
#include "ferry/core/error.h"
#include "ferry/core/hash.h"

namespace ferry {

namespace {

struct SourceKind {
  bool (*recognises)(const std::filesystem::path& path);
  std::unique_ptr<TensorSource> (*open)(const std::filesystem::path& path);
};

/// The first that recognises a path opens it.
constexpr std::array kSources = {
    SourceKind{is_packed_directory, open_packed_directory},
    SourceKind{is_safetensors_directory, open_safetensors_directory},
    SourceKind{is_gguf_file, open_gguf_file},
};

}  // namespace

std::unique_ptr<TensorSource> open_source(const std::filesystem::path& path) {
  for (const SourceKind& kind : kSources)
    if (kind.recognises(path)) return kind.open(path);
  std::error_code code;
  fail<ModelError>("{}: expected a checkpoint directory or a file .gguf, found {}",
                   path.string(),
                   std::filesystem::exists(path, code) ? "another file" : "nothing");
}

std::optional<SourceText> model_text(const std::filesystem::path& path, const std::string& name) {
  std::error_code code;
  if (std::filesystem::is_regular_file(path, code)) return open_source(path)->text(name);
  return directory_text(path, name);
}

const SourceTensor& TensorSource::require(std::string_view name,
                                          std::span<const std::int64_t> shape) const {
  const SourceTensor* tensor = find(name);
  if (tensor == nullptr) {
    fail<ModelError>("{}: tensor {}: expected [{}], found no such tensor",
                     files().size() == 1 ? files()[0].path : path(),
                     name,
                     fmt::join(shape, ", "));
  }
  if (!std::ranges::equal(tensor->shape, shape)) {
    fail<ModelError>("{}: tensor {}: expected [{}] as {} says, found [{}]",
                     files()[tensor->file].path,
                     name,
                     fmt::join(shape, ", "),
                     described_by(),
                     fmt::join(tensor->shape, ", "));
  }
  return *tensor;
}

TensorView TensorSource::elements(std::string_view name,
                                  std::span<const std::int64_t> shape) const {
  const SourceTensor& tensor = require(name, shape);
  if (!tensor.dtype) {
    fail<ModelError>("{}: tensor {}: expected F32, BF16 or F16, found {}",
                     files()[tensor.file].path,
                     name,
                     tensor.type);
  }
  return {.dtype = *tensor.dtype,
          .shape = tensor.shape,
          .data = tensor.data.data(),
          .bytes = tensor.data.size(),
          .type = tensor.type};
}

TensorView TensorSource::coded(std::string_view name,
                               std::span<const std::int64_t> shape,
                               std::string_view type) const {
  const SourceTensor& tensor = require(name, shape);
  if (tensor.type != type) {
    fail<ModelError>("{}: tensor {}: expected elements of {}, found {}",
                     files()[tensor.file].path,
                     name,
                     type,
                     tensor.type);
  }
  return {.shape = tensor.shape,
          .data = tensor.data.data(),
          .bytes = tensor.data.size(),
          .type = tensor.type};
}

std::uint64_t fingerprint(const TensorSource& source) {
  constexpr std::size_t kSamples = 256;
  constexpr std::size_t kSampleBytes = 256;
  Fnv1a hash;
  const auto tensors = source.tensors();
  const std::size_t every = std::max<std::size_t>(1, tensors.size() / kSamples);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    hash.add(tensors[i].name);
    hash.add_number(tensors[i].data.size());
    if (i % every == 0)
      hash.add(tensors[i].data.first(std::min(tensors[i].data.size(), kSampleBytes)));
  }
  return hash.value();
}

}  // namespace ferry
