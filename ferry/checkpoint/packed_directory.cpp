#include "ferry/checkpoint/packed_directory.h"

#include <fmt/core.h>

#include <unordered_map>

#include "ferry/checkpoint/json_file.h"
#include "ferry/checkpoint/packed_file.h"
#include "ferry/checkpoint/safetensors_directory.h"
#include "ferry/core/error.h"

namespace ferry {

namespace fs = std::filesystem;

namespace {

constexpr const char* kConfig = "config.json";

class PackedDirectory final : public TensorSource {
 public:
  explicit PackedDirectory(const fs::path& directory)
      : path_(directory.string()),
        config_{(directory / kConfig).string(), read_text_file(directory / kConfig)},
        packed_(directory / kPackedFile),
        files_{{packed_.path(), packed_.file_bytes()}} {
    for (const PackedPiece& piece : packed_.pieces()) list(piece);
    for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  }

  const std::string& path() const override { return path_; }

  std::string_view described_by() const override { return kConfig; }

  std::optional<SourceText> text(const std::string& name) const override {
    return name == kConfig ? config_ : directory_text(path_, name);
  }

  std::span<const SourceFile> files() const override { return files_; }

  std::span<const SourceTensor> tensors() const override { return tensors_; }

  const SourceTensor* find(std::string_view name) const override {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : &tensors_[it->second];
  }

  const PackedFile* packed() const override { return &packed_; }

 private:
  void list(const PackedPiece& piece) {
    if (piece.form == PackedForm::plain) {
      tensors_.push_back({.name = piece.names[0],
                          .type = plain_name(piece.dtype),
                          .dtype = piece.dtype,
                          .shape = piece.shape,
                          .data = piece.data});
      return;
    }
    for (std::size_t i = 0; i < piece.names.size(); ++i) {
      // The head of a model without one is the embedding's second form.
      if (packed_.find(PackedForm::plain, piece.names[i]) != nullptr) continue;
      const bool down = piece.form == PackedForm::block && i == 2;
      SourceTensor tensor{
          .name = piece.names[i],
          .type = fmt::format("{} panels", weight_type_name(down ? piece.down_type : piece.type)),
          .dtype = std::nullopt,
          .shape = {},
          .data = i == 0 ? piece.data : piece.data.first(0)};
      if (piece.form == PackedForm::matrix)
        tensor.shape = {piece.shape[i], piece.shape.back()};
      else if (down)
        tensor.shape = {piece.shape[1], piece.shape[0]};
      else
        tensor.shape = piece.shape;
      tensors_.push_back(std::move(tensor));
    }
  }

  static const char* plain_name(DType dtype) {
    if (dtype == DType::f32) return "F32";
    return dtype == DType::bf16 ? "BF16" : "F16";
  }

  std::string path_;
  SourceText config_;
  PackedFile packed_;
  std::vector<SourceFile> files_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys borrow from tensors_
};

}  // namespace

bool is_packed_directory(const fs::path& path) {
  std::error_code code;
  return fs::exists(path / kPackedFile, code);
}

std::unique_ptr<TensorSource> open_packed_directory(const fs::path& path) {
  return std::make_unique<PackedDirectory>(path);
}

}  // namespace ferry
