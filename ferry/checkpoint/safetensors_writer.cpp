#include "ferry/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::size_t kAlignment = 64;

std::string_view file_name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
  }
  FERRY_CHECK(false, "unknown element type {}", static_cast<int>(dtype));
}

}  // namespace

std::uint64_t TensorHeader::bytes() const {
  std::uint64_t n = codes.empty() ? dtype_bytes(dtype) : 1;
  for (const std::int64_t d : shape) n *= static_cast<std::uint64_t>(d);
  return n;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::span<const TensorHeader> tensors)
    : path_(path.string()) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  for (const TensorHeader& tensor : tensors) {
    const std::uint64_t end = missing_ + tensor.bytes();
    header += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                          nlohmann::json(tensor.name).dump(),
                          tensor.codes.empty() ? file_name_of(tensor.dtype) : tensor.codes,
                          fmt::join(tensor.shape, ","),
                          missing_,
                          end);
    missing_ = end;
  }
  header += '}';
  std::uint64_t length = 0;
  const std::size_t padded =
      static_cast<std::size_t>(round_up(static_cast<std::int64_t>(sizeof(length) + header.size()),
                                        static_cast<std::int64_t>(kAlignment)));
  header.resize(padded - sizeof(length), ' ');
  std::byte bytes[sizeof(length)];
  length = header.size();
  for (std::size_t i = 0; i < sizeof(length); ++i) bytes[i] = std::byte(length >> (8 * i) & 0xFF);

  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail<Error>("{}: cannot be created: {}", path_, std::strerror(errno));
  put(bytes, sizeof(bytes));
  put(header.data(), header.size());
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void SafetensorsWriter::put(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  FERRY_CHECK(bytes.size() <= missing_, "{} bytes of {} still expected", bytes.size(), missing_);
  put(bytes.data(), bytes.size());
  missing_ -= bytes.size();
}

void SafetensorsWriter::close() {
  FERRY_CHECK(missing_ == 0, "{} bytes of data are missing in {}", missing_, path_);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
}

}  // namespace ferry
