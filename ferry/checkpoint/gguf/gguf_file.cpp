#include "ferry/checkpoint/gguf/gguf_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <set>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "GGUF";
constexpr std::uint32_t kOldest = 2;  // version 1 counted in 32 bits
constexpr std::uint32_t kNewest = 3;
constexpr std::size_t kMaxName = 256;  // ggml itself takes 64 for tensors
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 48;
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 20;
constexpr std::int64_t kUsualAlignment = 32;

/// Types of values, by their numbers in the file.
enum class ValueType : std::uint32_t {
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  float32,
  flag,
  text,
  list,
  uint64,
  int64,
  float64,
};

constexpr std::array<std::size_t, 13> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

/// Reads forward and never beyond the end. Errors say what was being read.
class Cursor {
 public:
  Cursor(const std::string& file, std::span<const std::byte> bytes) : file_(file), bytes_(bytes) {}

  std::size_t place() const { return place_; }

  std::size_t rest() const { return bytes_.size() - place_; }

  /// What errors name from here on.
  void set_subject(std::string subject) { subject_ = std::move(subject); }

  template <class T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

  std::string_view text() {
    const auto length = number<std::uint64_t>();
    const auto bytes = take(length);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  /// A count of things of so many bytes at least: there must be room for them.
  std::size_t count(std::size_t bytes_of_one) {
    const auto found = number<std::uint64_t>();
    if (found > rest() / bytes_of_one) refuse_end(fmt::format("{} values", found));
    return static_cast<std::size_t>(found);
  }

  /// A name that errors can print.
  std::string name() {
    const std::string_view name = text();
    const auto printable = [](char c) { return c > ' ' && c <= '~'; };
    if (name.empty() || name.size() > kMaxName || !std::ranges::all_of(name, printable))
      refuse("a name of printable letters", fmt::format("one of {} bytes", name.size()));
    return std::string(name);
  }

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    fail<ModelError>("{}: {}: expected {}, found {}", file_, subject_, expected, found);
  }

 private:
  std::span<const std::byte> take(std::uint64_t size) {
    if (size > rest()) refuse_end(fmt::format("{} bytes", size));
    const auto part = bytes_.subspan(place_, static_cast<std::size_t>(size));
    place_ += static_cast<std::size_t>(size);
    return part;
  }

  [[noreturn]] void refuse_end(const std::string& wanted) const {
    refuse(wanted, fmt::format("{} bytes up to the end of the file (truncated file?)", rest()));
  }

  const std::string& file_;
  std::span<const std::byte> bytes_;
  std::size_t place_ = 0;
  std::string subject_ = "header";
};

ValueType read_type(Cursor& in) {
  const auto number = in.number<std::uint32_t>();
  if (number >= kValueBytes.size()) in.refuse("a type from 0 to 12", std::to_string(number));
  return static_cast<ValueType>(number);
}

std::int64_t read_integer(Cursor& in, ValueType type) {
  switch (type) {
    case ValueType::uint8:
      return in.number<std::uint8_t>();
    case ValueType::int8:
      return in.number<std::int8_t>();
    case ValueType::uint16:
      return in.number<std::uint16_t>();
    case ValueType::int16:
      return in.number<std::int16_t>();
    case ValueType::uint32:
      return in.number<std::uint32_t>();
    case ValueType::int32:
      return in.number<std::int32_t>();
    case ValueType::flag: {
      const auto flag = in.number<std::uint8_t>();
      if (flag > 1) in.refuse("a flag of 0 or 1", std::to_string(flag));
      return flag;
    }
    default:
      break;
  }
  const auto number = in.number<std::int64_t>();
  if (type == ValueType::uint64 && number < 0)
    in.refuse("an integer below 2^63", std::to_string(static_cast<std::uint64_t>(number)));
  return number;
}

GgufValue read_list(Cursor& in) {
  const ValueType type = read_type(in);
  if (type == ValueType::list) in.refuse("a list of plain values", "a list of lists");
  const std::size_t count = in.count(kValueBytes[static_cast<std::size_t>(type)]);
  const auto read = [&](auto one) {
    std::vector<decltype(one())> values;
    values.reserve(count);
    for (std::size_t i = 0; i < count; ++i) values.push_back(one());
    return values;
  };
  if (type == ValueType::text) return read([&] { return in.text(); });
  if (type == ValueType::float32) return read([&] { return double{in.number<float>()}; });
  if (type == ValueType::float64) return read([&] { return in.number<double>(); });
  return read([&] { return read_integer(in, type); });
}

GgufValue read_value(Cursor& in) {
  const ValueType type = read_type(in);
  switch (type) {
    case ValueType::list:
      return read_list(in);
    case ValueType::text:
      return in.text();
    case ValueType::float32:
      return gguf_meant(in.number<float>());
    case ValueType::float64:
      return in.number<double>();
    case ValueType::flag:
      return read_integer(in, type) != 0;
    default:
      return read_integer(in, type);
  }
}

/// As the file has it; data is found when all are known.
struct Placed {
  GgufFile::Tensor tensor;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

/// Sets shape and bytes. Dimensions lie the other way round: columns first.
void read_shape(Cursor& in, const std::string& file, Placed& placed) {
  GgufFile::Tensor& tensor = placed.tensor;
  const auto dimensions = in.number<std::uint32_t>();
  if (dimensions == 0 || dimensions > kMaxDimensions)
    in.refuse(fmt::format("1 to {} dimensions", kMaxDimensions), std::to_string(dimensions));
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = in.number<std::uint64_t>();
    if (size == 0 || size > kMaxDimension)
      in.refuse("dimensions from 1 to 2^48", std::to_string(size));
    tensor.shape.push_back(static_cast<std::int64_t>(size));
  }
  std::ranges::reverse(tensor.shape);
  const auto number = in.number<std::uint32_t>();
  tensor.type = find_gguf_type(number);
  if (tensor.type == nullptr || tensor.type->bytes == 0) {
    std::string known;
    for (const GgufType& type : gguf_types())
      if (type.bytes > 0) known += fmt::format("{}{}", known.empty() ? "" : ", ", type.name);
    fail<ModelError>("{}: tensor {}: expected elements of {}, found {}",
                     file,
                     tensor.name,
                     known,
                     tensor.type == nullptr ? fmt::format("type {}", number) : tensor.type->name);
  }
  const std::int64_t columns = tensor.shape.back();
  if (columns % tensor.type->elements != 0) {
    in.refuse(fmt::format("rows that {} divides, of {}", tensor.type->elements, tensor.type->name),
              fmt::format("{} columns", columns));
  }
  placed.bytes = static_cast<std::uint64_t>(tensor.type->row_bytes(columns));
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    if (__builtin_mul_overflow(
            placed.bytes, static_cast<std::uint64_t>(tensor.shape[i]), &placed.bytes))
      in.refuse("a tensor of fewer than 2^64 bytes", "more");
  }
}

/// Sets every tensor's data: inside the file, aligned, and no two the same.
void place_all(std::vector<Placed>& all,
               std::span<const std::byte> data,
               std::uint64_t alignment,
               const std::string& file) {
  for (Placed& placed : all) {
    const auto refuse = [&](std::string_view expected) {
      fail<ModelError>("{}: tensor {}: expected {}, found {} bytes at offset {}",
                       file,
                       placed.tensor.name,
                       expected,
                       placed.bytes,
                       placed.offset);
    };
    if (placed.offset % alignment != 0) refuse(fmt::format("an offset that {} divides", alignment));
    if (placed.offset > data.size() || placed.bytes > data.size() - placed.offset) {
      refuse(
          fmt::format("data within the {} bytes behind the header (truncated file?)", data.size()));
    }
    placed.tensor.data = data.subspan(static_cast<std::size_t>(placed.offset),
                                      static_cast<std::size_t>(placed.bytes));
  }
  std::vector<const Placed*> in_order;
  for (const Placed& placed : all) in_order.push_back(&placed);
  std::ranges::sort(in_order, {}, &Placed::offset);
  for (std::size_t i = 1; i < in_order.size(); ++i) {
    const Placed& before = *in_order[i - 1];
    if (in_order[i]->offset >= before.offset + before.bytes) continue;
    fail<ModelError>("{}: tensor {}: expected data of its own, found it overlaps tensor {}",
                     file,
                     in_order[i]->tensor.name,
                     before.tensor.name);
  }
}

void check_version(Cursor& in) {
  const auto version = in.number<std::uint32_t>();
  if (version >= kOldest && version <= kNewest) return;
  in.refuse(fmt::format("version {} or {}, of little endian", kOldest, kNewest),
            fmt::format("{}", version));
}

}  // namespace

double gguf_meant(float number) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  double result = number;
  std::from_chars(text.data(), end, result);
  return result;
}

GgufFile::GgufFile(const std::filesystem::path& path) : path_(path.string()), file_(path) {
  Cursor in(path_, file_.bytes());
  const bool magic = in.rest() >= kMagic.size() &&
                     std::memcmp(file_.bytes().data(), kMagic.data(), kMagic.size()) == 0;
  if (!magic) in.refuse("a GGUF file", "another, by its first four bytes");
  in.number<std::uint32_t>();
  check_version(in);
  // A tensor is a name, a count, a dimension, a type and an offset at least; a value a key, a type
  // and a byte.
  const std::size_t tensors = in.count(8 + 4 + 8 + 4 + 8);
  const std::size_t values = in.count(8 + 4 + 1);
  for (std::size_t i = 0; i < values; ++i) {
    in.set_subject(fmt::format("metadata {}", i));
    const std::string key = in.name();
    in.set_subject(key);
    if (!metadata_.emplace(key, read_value(in)).second) in.refuse("one value", "two");
  }
  std::vector<Placed> all(tensors);
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < tensors; ++i) {
    in.set_subject(fmt::format("tensor {}", i));
    all[i].tensor.name = in.name();
    in.set_subject(fmt::format("tensor {}", all[i].tensor.name));
    if (!names.insert(all[i].tensor.name).second) in.refuse("one of this name", "two");
    read_shape(in, path_, all[i]);
    all[i].offset = in.number<std::uint64_t>();
  }
  in.set_subject("general.alignment");
  const GgufValue* stated = find("general.alignment");
  const auto* number = std::get_if<std::int64_t>(stated);
  if (stated != nullptr && number == nullptr) in.refuse("an integer", "another type");
  const auto alignment = static_cast<std::uint64_t>(number == nullptr ? kUsualAlignment : *number);
  if (!std::has_single_bit(alignment) || alignment > kMaxAlignment)
    in.refuse("a power of two up to 2^20", std::to_string(alignment));
  const std::size_t begin = (in.place() + alignment - 1) / alignment * alignment;
  place_all(all, file_.bytes().subspan(std::min(begin, file_.bytes().size())), alignment, path_);
  for (Placed& placed : all) tensors_.push_back(std::move(placed.tensor));
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

}  // namespace ferry
