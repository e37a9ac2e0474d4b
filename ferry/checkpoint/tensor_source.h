// Where a model's tensors and texts come from: the interface between what lies on disk and what
// the model wants. How a path is opened stands in one table in tensor_source.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/tensor_view.h"
#include "ferry/core/types.h"

namespace ferry {

class PackedFile;

/// One tensor of a source. Borrowed from it.
struct SourceTensor {
  std::string name;
  std::string type;            ///< as the source writes it: "BF16"
  std::optional<DType> dtype;  ///< absent for types that are no plain elements for us
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
  std::size_t file = 0;  ///< which of files()
};

struct SourceFile {
  std::string path;
  std::uint64_t bytes = 0;
};

/// A text that belongs to the model, and what errors call the place it comes from.
struct SourceText {
  std::string file;
  std::string text;
};

/// Owns the mappings; everything else borrows from it. Opening reads headers only: pages of weights
/// come in when somebody reads them. An implementation has checked that every tensor's data lies in
/// its file and, for a type it knows, is as long as its shape says. Threads: const and safe for
/// several.
class TensorSource {
 public:
  TensorSource() = default;
  virtual ~TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;

  /// What the user calls it: a directory or a file.
  virtual const std::string& path() const = 0;

  /// What says which shapes are right, in errors about them: "config.json".
  virtual std::string_view described_by() const = 0;

  /// The text that a Hugging Face directory has in a file of this name ("config.json",
  /// "generation_config.json", "chat_template.jinja"); absent where there is none. A source that
  /// keeps such things in another form answers with what it makes of them. "config.json" is never
  /// absent. Throws ModelError when it cannot be read.
  virtual std::optional<SourceText> text(const std::string& name) const = 0;

  virtual std::span<const SourceFile> files() const = 0;

  /// Every tensor in the files, in their order, also those that the model does not use.
  virtual std::span<const SourceTensor> tensors() const = 0;

  /// Null when there is none.
  virtual const SourceTensor* find(std::string_view name) const = 0;

  /// Weights as they lie in memory, of a source that has them so; else null. Its matrices cannot be
  /// read as rows.
  virtual const PackedFile* packed() const { return nullptr; }

  /// The tensor of exactly this shape. Throws ModelError naming file, tensor, what was expected and
  /// what was found, as the two below do.
  const SourceTensor& require(std::string_view name, std::span<const std::int64_t> shape) const;

  /// The same, of F32, BF16 or F16.
  TensorView elements(std::string_view name, std::span<const std::int64_t> shape) const;

  /// The same, of the type that the source writes so, which is one of whole bytes.
  TensorView coded(std::string_view name,
                   std::span<const std::int64_t> shape,
                   std::string_view type) const;
};

/// A text of the model at the path (TensorSource::text), whether or not there are weights: that of
/// a directory's file, or what another source makes of its own.
std::optional<SourceText> model_text(const std::filesystem::path& path, const std::string& name);

/// Throws ModelError when there is nothing at the path, or nothing that can be read.
std::unique_ptr<TensorSource> open_source(const std::filesystem::path& path);

/// Cheap and good enough to tell two sources apart: names and sizes of all tensors, and the first
/// bytes of some.
std::uint64_t fingerprint(const TensorSource& source);

}  // namespace ferry
