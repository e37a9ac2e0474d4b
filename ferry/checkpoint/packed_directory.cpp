#include "ferry/checkpoint/packed_directory.h"

#include <fmt/core.h>

#include "ferry/checkpoint/directory_source.h"
#include "ferry/checkpoint/packed_file.h"
#include "ferry/core/error.h"

namespace ferry {

namespace fs = std::filesystem;

namespace {

class PackedDirectory final : public DirectorySource {
 public:
  explicit PackedDirectory(const fs::path& directory)
      : DirectorySource(directory), packed_(directory / kPackedFile) {
    files_.push_back({packed_.path(), packed_.file_bytes()});
    for (const PackedPiece& piece : packed_.pieces()) list(piece);
    index_tensors();
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

  PackedFile packed_;
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
