#include "ferry/checkpoint/packed_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "ferry/buffer.h"
#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"
#include "ferry/core/hash.h"

namespace ferry {

using nlohmann::json;

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::uint64_t kLine = 64;
constexpr std::int64_t kMaxDimension = 1 << 22;
constexpr std::uint64_t kMaxPlainBytes = std::uint64_t{1} << 60;

/// The file's first line.
struct Head {
  char magic[8] = {'F', 'E', 'R', 'R', 'Y', 'P', 'K', '\n'};
  std::uint32_t version = kPackedVersion;
  std::uint32_t layout = kPanelLayout;
  std::uint64_t header_at = 0;
  std::uint64_t header_bytes = 0;
  std::uint64_t header_hash = 0;  // of whole words, the last one filled up with zeros
  std::uint64_t file_bytes = 0;
  std::uint64_t unused = 0;
  std::uint64_t hash = 0;  // of the words before it
};

static_assert(sizeof(Head) == kLine);

std::uint64_t hash_of(const Head& head) {
  return hash_bytes(std::as_bytes(std::span(&head, 1)).first(offsetof(Head, hash)));
}

std::uint64_t whole_lines(std::uint64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

std::uint64_t hash_of_text(std::span<const std::byte> text) {
  std::vector<std::byte> words(text.begin(), text.end());
  words.resize(static_cast<std::size_t>((text.size() + 7) / 8 * 8));
  return hash_bytes(words);
}

std::uint64_t panels_bytes(WeightType type, std::int64_t k, std::int64_t columns) {
  return PackedMatrix::packed_panel_bytes(type, k) *
         static_cast<std::uint64_t>(ceil_div(columns, kPanelColumns));
}

constexpr std::string_view kForms[] = {"plain", "matrix", "block"};

std::optional<WeightType> type_of_name(const std::string& name) {
  for (const auto types : {weight_types(), ggml_types(), byte_block_types()})
    for (const WeightType type : types)
      if (weight_type_name(type) == name) return type;
  return std::nullopt;
}

json to_json(const PackedPiece& piece) {
  json types = json::array();
  if (piece.form == PackedForm::plain)
    types.push_back(dtype_name(piece.dtype));
  else
    types.push_back(weight_type_name(piece.type));
  if (piece.form == PackedForm::block) types.push_back(weight_type_name(piece.down_type));
  json out = {{"form", kForms[static_cast<std::size_t>(piece.form)]},
              {"names", piece.names},
              {"shape", piece.shape},
              {"types", types},
              {"at", piece.at},
              {"hash", piece.hash}};
  if (piece.biased) out["biased"] = true;
  return out;
}

/// Reads one entry of the header. What it throws, json's own errors included, becomes one line.
class PieceParser {
 public:
  explicit PieceParser(const json& fields) : fields_(fields) {}

  PackedPiece parse() const {
    PackedPiece piece;
    piece.form = form();
    piece.names = fields_.at("names").get<std::vector<std::string>>();
    piece.shape = fields_.at("shape").get<std::vector<std::int64_t>>();
    piece.at = fields_.at("at").get<std::uint64_t>();
    piece.hash = fields_.at("hash").get<std::uint64_t>();
    piece.biased = fields_.value("biased", false);
    const auto types = fields_.at("types").get<std::vector<std::string>>();
    want(!piece.names.empty() && !piece.shape.empty() && !types.empty(), "names, shape and types");
    switch (piece.form) {
      case PackedForm::plain:
        read_plain(piece, types);
        break;
      case PackedForm::matrix:
        want(piece.shape.size() == piece.names.size() + 1, "rows of each matrix, and k");
        check_dimensions(piece);
        piece.type = panel_type(types[0], piece.shape.back());
        break;
      case PackedForm::block:
        want(piece.names.size() == 3 && piece.shape.size() == 2 && types.size() == 2,
             "gate, up and down of two dimensions and types");
        check_dimensions(piece);
        piece.type = panel_type(types[0], piece.shape[1]);
        piece.down_type = panel_type(types[1], piece.shape[0]);
        break;
    }
    return piece;
  }

 private:
  static void want(bool is_so, std::string_view what) {
    if (!is_so) fail<ModelError>("expected {}", what);
  }

  PackedForm form() const {
    const auto name = fields_.at("form").get<std::string>();
    for (const PackedForm form : {PackedForm::plain, PackedForm::matrix, PackedForm::block})
      if (kForms[static_cast<std::size_t>(form)] == name) return form;
    fail<ModelError>("expected a form plain, matrix or block, found {}", describe(fields_["form"]));
  }

  static void read_plain(PackedPiece& piece, const std::vector<std::string>& types) {
    std::uint64_t bytes = 4;
    bool fits = piece.names.size() == 1;
    for (const std::int64_t d : piece.shape) {
      fits = fits && d >= 1 &&
             !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(d), &bytes) &&
             bytes <= kMaxPlainBytes;
    }
    want(fits, "one tensor of fewer than 2^60 bytes");
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      if (types[0] != dtype_name(dtype)) continue;
      piece.dtype = dtype;
      return;
    }
    fail<ModelError>("expected elements of f32, bf16 or f16, found {}", types[0]);
  }

  static void check_dimensions(const PackedPiece& piece) {
    for (const std::int64_t d : piece.shape)
      want(d >= 1 && d <= kMaxDimension, "dimensions from 1 to 2^22");
  }

  static WeightType panel_type(const std::string& name, std::int64_t k) {
    const auto type = type_of_name(name);
    if (!type) fail<ModelError>("expected a type of weights, found {}", name);
    if (is_ggml(*type)) want(k % ggml_block(*type).k == 0, "k of whole blocks");
    return *type;
  }

  const json& fields_;
};

}  // namespace

std::uint64_t PackedPiece::bytes() const {
  if (form == PackedForm::plain) {
    std::uint64_t bytes = dtype_bytes(dtype);
    for (const std::int64_t d : shape) bytes *= static_cast<std::uint64_t>(d);
    return bytes;
  }
  if (form == PackedForm::matrix) return panels_bytes(type, shape.back(), columns());
  const std::int64_t inter = shape[0];
  const std::int64_t hidden = shape[1];
  const std::int64_t panels = 2 * ceil_div(inter, kPanelColumns) + ceil_div(hidden, kPanelColumns);
  const auto biases = static_cast<std::uint64_t>(panels * kPanelColumns) * sizeof(float);
  return gate_up_bytes() + panels_bytes(down_type, inter, hidden) + (biased ? biases : 0);
}

std::int64_t PackedPiece::columns() const {
  return std::accumulate(shape.begin(), shape.end() - 1, std::int64_t{0});
}

std::uint64_t PackedPiece::gate_up_bytes() const {
  return 2 * panels_bytes(type, shape[1], shape[0]);
}

PackedFile::PackedFile(const std::filesystem::path& path) : path_(path.string()), file_(path) {
  const auto bytes = file_.bytes();
  // A system that keeps this file in huge pages then reads it in and maps it so.
  advise_huge_pages(const_cast<std::byte*>(bytes.data()), bytes.size());
  const Head wanted;
  Head head;
  if (bytes.size() >= sizeof head) std::memcpy(&head, bytes.data(), sizeof head);
  if (bytes.size() < sizeof head || std::memcmp(head.magic, wanted.magic, sizeof head.magic) != 0)
    fail<ModelError>("{}: expected packed weights, found another file", path_);
  if (head.version != wanted.version || head.layout != wanted.layout) {
    fail<ModelError>(
        "{}: expected packed weights of version {} and panels of layout {}, found {} and {}; "
        "`ferry pack` makes them anew of the checkpoint",
        path_,
        wanted.version,
        wanted.layout,
        head.version,
        head.layout);
  }
  if (head.hash != hash_of(head))
    fail<ModelError>("{}: expected another checksum of its head", path_);
  if (head.file_bytes != bytes.size()) {
    fail<ModelError>(
        "{}: expected {} bytes, found {} (truncated file?)", path_, head.file_bytes, bytes.size());
  }
  if (head.header_at > bytes.size() || head.header_bytes > bytes.size() - head.header_at)
    fail<ModelError>(
        "{}: expected its header within {} bytes, found it outside", path_, bytes.size());
  const auto header = bytes.subspan(static_cast<std::size_t>(head.header_at),
                                    static_cast<std::size_t>(head.header_bytes));
  if (head.header_hash != hash_of_text(header))
    fail<ModelError>("{}: expected another checksum of its header", path_);
  read_header(header);
}

void PackedFile::read_header(std::span<const std::byte> text) {
  const json header =
      parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, path_ + ": header");
  std::size_t number = 0;
  try {
    const json& weights = header.at("weights");
    const auto type = type_of_name(weights.at("type").get<std::string>());
    if (!type) fail<ModelError>("expected a type of weights");
    choice_ = {.asked = weights.at("asked").get<std::string>(),
               .type = *type,
               .plain_stays = weights.at("plain_stays").get<bool>(),
               .as_stored = weights.at("as_stored").get<bool>(),
               .int8_rows = weights.value("int8_rows", false)};
    for (const json& fields : header.at("pieces")) {
      PackedPiece piece = PieceParser(fields).parse();
      const std::uint64_t length = piece.bytes();
      const std::uint64_t end = file_bytes();
      if (piece.at % kLine != 0 || piece.at > end || whole_lines(length) > end - piece.at)
        fail<ModelError>(
            "expected whole lines within the file, found {} bytes at {}", length, piece.at);
      piece.data = file_.bytes().subspan(static_cast<std::size_t>(piece.at),
                                         static_cast<std::size_t>(length));
      pieces_.push_back(std::move(piece));
      ++number;
    }
  } catch (const json::exception& e) {
    fail<ModelError>("{}: header: piece {}: {}", path_, number, e.what());
  } catch (const ModelError& e) {
    fail<ModelError>("{}: header: piece {}: {}", path_, number, e.what());
  }
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const PackedPiece& piece = pieces_[i];
    if (!by_name_.emplace(std::pair(piece.form, std::string_view(piece.names[0])), i).second)
      fail<ModelError>("{}: header: expected one piece of {}, found two", path_, piece.names[0]);
  }
}

const PackedPiece* PackedFile::find(PackedForm form, std::string_view name) const {
  const auto found = by_name_.find(std::pair(form, name));
  return found == by_name_.end() ? nullptr : &pieces_[found->second];
}

void PackedFile::verify() const {
  for (const PackedPiece& piece : pieces_) {
    const auto lines =
        file_.bytes().subspan(static_cast<std::size_t>(piece.at),
                              static_cast<std::size_t>(whole_lines(piece.data.size())));
    if (hash_bytes(lines) != piece.hash)
      fail<ModelError>("{}: {}: expected bytes of another checksum", path_, piece.names[0]);
    advise_read_done(lines);
  }
}

PackedFileWriter::PackedFileWriter(const std::filesystem::path& path, PackedChoice choice)
    : path_(path.string()), choice_(std::move(choice)) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail<Error>("{}: cannot be created: {}", path_, std::strerror(errno));
  const std::byte nothing[sizeof(Head)] = {};  // until close() says what is here
  put(nothing);
}

PackedFileWriter::~PackedFileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void PackedFileWriter::put(std::span<const std::byte> bytes) {
  at_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void PackedFileWriter::add(PackedPiece piece, std::span<const std::byte> data) {
  FERRY_CHECK(piece.bytes() == data.size(), "{} bytes of {}", data.size(), piece.bytes());
  piece.at = at_;
  const std::size_t whole = data.size() / kLine * kLine;
  if (whole == data.size()) {
    piece.hash = hash_bytes(data);
    put(data);
  } else {
    std::vector<std::byte> lines(data.begin(), data.end());
    lines.resize(static_cast<std::size_t>(whole_lines(data.size())));
    piece.hash = hash_bytes(lines);
    put(lines);
  }
  piece.data = {};
  pieces_.push_back(std::move(piece));
}

void PackedFileWriter::close() {
  json pieces = json::array();
  for (const PackedPiece& piece : pieces_) pieces.push_back(to_json(piece));
  const json header = {{"weights",
                        {{"asked", choice_.asked},
                         {"type", weight_type_name(choice_.type)},
                         {"plain_stays", choice_.plain_stays},
                         {"as_stored", choice_.as_stored},
                         {"int8_rows", choice_.int8_rows}}},
                       {"pieces", std::move(pieces)}};
  const std::string text = header.dump();
  const auto bytes = std::as_bytes(std::span(text));
  Head head;
  head.header_at = at_;
  head.header_bytes = bytes.size();
  head.header_hash = hash_of_text(bytes);
  put(bytes);
  head.file_bytes = at_;
  head.hash = hash_of(head);
  if (::pwrite(fd_, &head, sizeof head, 0) != static_cast<ssize_t>(sizeof head))
    fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
  // What has just been written is in small pages; what is read again comes in huge ones.
  if (::fsync(fd_) != 0) fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
  static_cast<void>(::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED));
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail<Error>("{}: cannot be written: {}", path_, std::strerror(errno));
}

}  // namespace ferry
