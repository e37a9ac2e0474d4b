#include "ferry/checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

// The reference implementation's limit; a larger header is an attack or an accident.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxDimensions = 32;

struct FileType {
  std::string_view name;
  unsigned bits;
  std::optional<DType> dtype;
};

constexpr std::array<FileType, 19> kFileTypes = {{
    {"F32", 32, DType::f32},      {"BF16", 16, DType::bf16},    {"F16", 16, DType::f16},
    {"F64", 64, std::nullopt},    {"BOOL", 8, std::nullopt},    {"I8", 8, std::nullopt},
    {"U8", 8, std::nullopt},      {"I16", 16, std::nullopt},    {"U16", 16, std::nullopt},
    {"I32", 32, std::nullopt},    {"U32", 32, std::nullopt},    {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},
}};

const FileType* find_type(std::string_view name) {
  const auto* it = std::find_if(
      kFileTypes.begin(), kFileTypes.end(), [&](const FileType& t) { return t.name == name; });
  return it == kFileTypes.end() ? nullptr : it;
}

/// Reads one entry of the header; every complaint names file and tensor.
class EntryParser {
 public:
  EntryParser(const std::string& file, const std::string& tensor, const json& fields)
      : file_(file), tensor_(tensor), fields_(fields) {}

  /// data_begin, data_bytes: where the data lies in the file.
  SafetensorsFile::Entry parse(std::size_t data_begin, std::size_t data_bytes) const {
    if (!fields_.is_object()) refuse("an object with dtype, shape and data_offsets", fields_);
    SafetensorsFile::Entry entry;
    entry.name = tensor_;
    const json& dtype = field("dtype");
    if (!dtype.is_string()) refuse("dtype to be a string", dtype);
    entry.dtype_name = dtype.get<std::string>();
    entry.shape = shape();

    const json& offsets = field("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      refuse("data_offsets to be two integers from 0 on", offsets);
    }
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    if (begin > end || end > data_bytes) {
      fail<ModelError>(
          "{}: tensor {}: expected data within the {} bytes of the file, found [{}, {})",
          file_,
          tensor_,
          data_bytes,
          begin,
          end);
    }
    entry.offset = data_begin + static_cast<std::size_t>(begin);
    entry.bytes = static_cast<std::size_t>(end - begin);
    check_size(entry);
    return entry;
  }

  /// A type we know the width of must fill its range exactly. Sets entry.dtype.
  void check_size(SafetensorsFile::Entry& entry) const {
    const FileType* type = find_type(entry.dtype_name);
    if (type == nullptr) return;
    entry.dtype = type->dtype;
    std::uint64_t bits = type->bits;
    bool fits = true;
    for (const std::int64_t d : entry.shape) {
      fits = fits && !__builtin_mul_overflow(bits, static_cast<std::uint64_t>(d), &bits);
    }
    if (!fits || bits % 8 != 0 || bits / 8 != entry.bytes) {
      fail<ModelError>("{}: tensor {}: expected {} bytes for {} [{}], found {}",
                       file_,
                       tensor_,
                       fits ? std::to_string(bits / 8) : "more than 2^61",
                       entry.dtype_name,
                       fmt::join(entry.shape, ", "),
                       entry.bytes);
    }
  }

 private:
  const json& field(const char* key) const {
    const auto it = fields_.find(key);
    if (it == fields_.end()) {
      fail<ModelError>("{}: tensor {}: expected {}, found nothing", file_, tensor_, key);
    }
    return *it;
  }

  std::vector<std::int64_t> shape() const {
    const json& list = field("shape");
    if (!list.is_array() || list.size() > kMaxDimensions) refuse("shape to be a list", list);
    std::vector<std::int64_t> result;
    for (const json& d : list) {
      if (!d.is_number_unsigned() || d.get<std::uint64_t>() > (std::uint64_t{1} << 48)) {
        refuse("dimensions from 0 to 2^48", d);
      }
      result.push_back(d.get<std::int64_t>());
    }
    return result;
  }

  [[noreturn]] void refuse(std::string_view expected, const json& found) const {
    fail<ModelError>(
        "{}: tensor {}: expected {}, found {}", file_, tensor_, expected, describe(found));
  }

  const std::string& file_;
  const std::string& tensor_;
  const json& fields_;
};

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path.string()), file_(path) {
  read_header();
}

void SafetensorsFile::read_header() {
  const auto bytes = file_.bytes();
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length)) {
    fail<ModelError>("{}: expected a safetensors file, found {} bytes", path_, bytes.size());
  }
  for (std::size_t i = sizeof(length); i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  }
  const std::size_t rest = bytes.size() - sizeof(length);
  if (length > rest || length > kMaxHeaderBytes) {
    fail<ModelError>("{}: expected a header of at most {} bytes, found one of {} (truncated file?)",
                     path_,
                     std::min<std::uint64_t>(rest, kMaxHeaderBytes),
                     length);
  }
  const std::size_t data_begin = sizeof(length) + static_cast<std::size_t>(length);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof(length),
                              static_cast<std::size_t>(length));
  const json header = parse_json(text, path_ + ": header");
  if (!header.is_object()) {
    fail<ModelError>("{}: header: expected an object, found {}", path_, describe(header));
  }
  for (const auto& [name, fields] : header.items()) {
    if (name == "__metadata__") continue;
    entries_.push_back(
        EntryParser(path_, name, fields).parse(data_begin, bytes.size() - data_begin));
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  check_ranges(data_begin);
  for (std::size_t i = 0; i < entries_.size(); ++i) by_name_.emplace(entries_[i].name, i);
}

void SafetensorsFile::check_ranges(std::size_t data_begin) const {
  std::size_t end = data_begin;
  for (const Entry& entry : entries_) {
    if (entry.offset != end) {
      fail<ModelError>("{}: tensor {}: expected its data at offset {}, found it at {} ({})",
                       path_,
                       entry.name,
                       end - data_begin,
                       entry.offset - data_begin,
                       entry.offset < end ? "it overlaps another tensor" : "a gap before it");
    }
    end += entry.bytes;
  }
  if (end != file_bytes()) {
    fail<ModelError>("{}: expected the tensors to fill {} bytes of data, found {}",
                     path_,
                     file_bytes() - data_begin,
                     end - data_begin);
  }
}

const SafetensorsFile::Entry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

TensorView SafetensorsFile::view(const Entry& entry) const {
  if (!entry.dtype) {
    fail<ModelError>(
        "{}: tensor {}: expected F32, BF16 or F16, found {}", path_, entry.name, entry.dtype_name);
  }
  return {*entry.dtype, entry.shape, file_.bytes().data() + entry.offset, entry.bytes};
}

}  // namespace ferry
