// A directory of a few tensors, written byte by byte so that it may also be wrong.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/tensor_source.h"
#include "support/files.h"

namespace ferry::test {

struct SmallTensor {
  std::string name;
  std::string type;
  std::vector<std::int64_t> shape;
  std::string data;
};

inline std::size_t type_bytes(std::string_view type) {
  if (type == "I64") return 8;
  if (type == "F32" || type == "I32") return 4;
  return type == "BF16" || type == "F16" ? 2 : 1;
}

/// Of the size that type and shape ask for; every byte differs from its neighbours.
inline SmallTensor small_tensor(std::string name,
                                std::string type,
                                std::vector<std::int64_t> shape) {
  std::size_t bytes = type_bytes(type);
  for (const std::int64_t d : shape) bytes *= static_cast<std::size_t>(d);
  std::string data(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(i * 37 + bytes);
  return {std::move(name), std::move(type), std::move(shape), std::move(data)};
}

inline std::string safetensors_bytes(const std::vector<SmallTensor>& tensors) {
  std::string header;
  std::string data;
  for (const SmallTensor& t : tensors) {
    const std::size_t end = data.size() + t.data.size();
    header += fmt::format(R"({}"{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})",
                          header.empty() ? "{" : ",",
                          t.name,
                          t.type,
                          nlohmann::json(t.shape).dump(),
                          data.size(),
                          end);
    data += t.data;
  }
  header += header.empty() ? "{}" : "}";
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i)
    length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return length + header + data;
}

/// A directory with config.json and one file of these tensors, or the error of opening it.
class SmallDirectory {
 public:
  std::filesystem::path path() const { return dir_.path(); }

  std::unique_ptr<TensorSource> open(const std::vector<SmallTensor>& tensors) const {
    write_file(path() / "config.json", "{}");
    write_file(path() / "model.safetensors", safetensors_bytes(tensors));
    return open_source(path());
  }

 private:
  TempDir dir_;
};

}  // namespace ferry::test
