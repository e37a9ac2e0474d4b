// What sources that are directories in Hugging Face layout have in common, whatever their weights
// lie in.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ferry/checkpoint/tensor_source.h"

namespace ferry {

/// The text of a file of the directory, absent where there is no such file.
std::optional<SourceText> directory_text(const std::filesystem::path& directory,
                                         const std::string& name);

/// Texts are the directory's files. What derives from it lists files and tensors while it is
/// constructed.
class DirectorySource : public TensorSource {
 public:
  const std::string& path() const override { return path_; }

  std::string_view described_by() const override { return kConfig; }

  std::optional<SourceText> text(const std::string& name) const override;

  std::span<const SourceFile> files() const override { return files_; }

  std::span<const SourceTensor> tensors() const override { return tensors_; }

  const SourceTensor* find(std::string_view name) const override;

 protected:
  /// Reads config.json. Throws ModelError.
  explicit DirectorySource(const std::filesystem::path& directory);

  /// Once they are listed: tensors are found by their names, of two of one name the first.
  void index_tensors();

  std::string path_;
  std::vector<SourceFile> files_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys borrow from tensors_

 private:
  static constexpr const char* kConfig = "config.json";

  SourceText config_;
};

}  // namespace ferry
