// Files of packed weights: what was written comes back, and a stale, damaged or lying one is one
// line and never a read outside the file.
#include "ferry/checkpoint/packed_file.h"

#include <gmock/gmock.h>

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/core/hash.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::vector<std::byte> numbered(std::size_t bytes, int from) {
  std::vector<std::byte> data(bytes);
  for (std::size_t i = 0; i < bytes; ++i) data[i] = std::byte(static_cast<std::uint8_t>(from + i));
  return data;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

template <class T>
T number_at(const std::string& file, std::size_t at) {
  T number{};
  std::memcpy(&number, file.data() + at, sizeof number);
  return number;
}

template <class T>
void put_number(std::string& file, std::size_t at, T number) {
  std::memcpy(file.data() + at, &number, sizeof number);
}

// Where the head has what: docs/checkpoints.md, "Packed".
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kLayoutAt = 12;
constexpr std::size_t kHeaderAt = 16;
constexpr std::size_t kHeaderBytesAt = 24;
constexpr std::size_t kHeaderHashAt = 32;
constexpr std::size_t kFileBytesAt = 40;
constexpr std::size_t kHashAt = 56;

class PackedFiles : public testing::Test {
 protected:
  PackedFiles() {
    PackedFileWriter writer(path_, {.asked = "int8", .type = WeightType::int8});
    for (const PackedPiece& piece : pieces_) {
      data_.push_back(
          numbered(static_cast<std::size_t>(piece.bytes()), static_cast<int>(data_.size())));
      writer.add(piece, data_.back());
    }
    writer.close();
    text_ = test::read_file(path_);
  }

  std::string error_of(const std::string& file) const {
    const auto path = dir_.path() / "bad";
    test::write_file(path, file);
    std::string message = test::message_of<ModelError>([&] { PackedFile{path}; });
    EXPECT_THAT(message, HasSubstr("bad: "));
    return message;
  }

  /// With the head's checksum set right again.
  static std::string with_head(std::string file, const std::function<void(std::string&)>& change) {
    change(file);
    put_number(file, kHashAt, hash_bytes(bytes_of(file).first(kHashAt)));
    return file;
  }

  /// With another header, and checksums as if it had been written so.
  std::string with_header(const std::function<void(json&)>& change) const {
    const auto at = static_cast<std::size_t>(number_at<std::uint64_t>(text_, kHeaderAt));
    json header = json::parse(text_.substr(at));
    change(header);
    return with_text(header.dump());
  }

  std::string with_text(const std::string& header) const {
    const auto at = static_cast<std::size_t>(number_at<std::uint64_t>(text_, kHeaderAt));
    std::string words = header;
    words.resize((header.size() + 7) / 8 * 8);
    return with_head(text_.substr(0, at) + header, [&](std::string& file) {
      put_number<std::uint64_t>(file, kHeaderBytesAt, header.size());
      put_number<std::uint64_t>(file, kHeaderHashAt, hash_bytes(bytes_of(words)));
      put_number<std::uint64_t>(file, kFileBytesAt, file.size());
    });
  }

  /// Of a header whose piece number `piece` is another one.
  std::string error_of_piece(std::size_t piece, const std::function<void(json&)>& change) const {
    return error_of(with_header([&](json& header) { change(header["pieces"][piece]); }));
  }

  const std::vector<PackedPiece> pieces_ = {
      {.form = PackedForm::plain, .names = {"norm"}, .shape = {5}, .dtype = DType::bf16},
      {.form = PackedForm::matrix,
       .names = {"q", "k"},
       .shape = {20, 9, 100},
       .type = WeightType::int8},
      {.form = PackedForm::block,
       .names = {"gate", "up", "down"},
       .shape = {24, 64},
       .type = WeightType::int4,
       .down_type = WeightType::bf16,
       .biased = true},
      {.form = PackedForm::plain, .names = {"q"}, .shape = {2, 1, 3}, .dtype = DType::f32}};
  test::TempDir dir_;
  std::filesystem::path path_ = dir_.path() / "model.packed";
  std::vector<std::vector<std::byte>> data_;
  std::string text_;
};

TEST_F(PackedFiles, HasWhatWasWritten) {
  const PackedFile file(path_);
  EXPECT_EQ(file.choice().asked, "int8");
  EXPECT_EQ(file.choice().type, WeightType::int8);
  EXPECT_FALSE(file.choice().plain_stays);
  ASSERT_EQ(file.pieces().size(), pieces_.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const PackedPiece* piece = file.find(pieces_[i].form, pieces_[i].names[0]);
    ASSERT_EQ(piece, &file.pieces()[i]);
    EXPECT_EQ(piece->names, pieces_[i].names);
    EXPECT_EQ(piece->shape, pieces_[i].shape);
    EXPECT_EQ(piece->dtype, pieces_[i].dtype);
    EXPECT_EQ(piece->type, pieces_[i].type);
    EXPECT_EQ(piece->down_type, pieces_[i].down_type);
    EXPECT_EQ(piece->biased, pieces_[i].biased);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece->data.data()) % 64, 0U);
    EXPECT_TRUE(std::ranges::equal(piece->data, data_[i]));
  }
  EXPECT_EQ(file.find(PackedForm::matrix, "k"), nullptr);
  EXPECT_EQ(file.find(PackedForm::block, "q"), nullptr);
  file.verify();
}

TEST_F(PackedFiles, OfAnotherVersionOrLayoutAreRefused) {
  const auto numbers = [](std::size_t at, std::uint32_t number) {
    return [=](std::string& file) { put_number(file, at, number); };
  };
  EXPECT_THAT(
      error_of(with_head(text_, numbers(kVersionAt, kPackedVersion + 1))),
      HasSubstr("expected packed weights of version 1 and panels of layout 1, found 2 and 1; "
                "`ferry pack` makes them anew"));
  EXPECT_THAT(error_of(with_head(text_, numbers(kLayoutAt, kPanelLayout + 1))),
              HasSubstr("found 1 and 2"));
  EXPECT_THAT(error_of("not so" + text_), HasSubstr("expected packed weights, found another file"));
  EXPECT_THAT(error_of(""), HasSubstr("expected packed weights, found another file"));
}

TEST_F(PackedFiles, CutAnywhereAreRefused) {
  for (std::size_t bytes = 0; bytes < text_.size(); bytes += 1 + bytes / 8)
    EXPECT_THAT(error_of(text_.substr(0, bytes)), HasSubstr("found")) << bytes;
  EXPECT_THAT(error_of(text_ + "x"), HasSubstr("(truncated file?)"));
}

TEST_F(PackedFiles, ChecksumsOfHeadAndHeaderAreCompared) {
  for (std::size_t at = kHeaderAt; at < 64; ++at) {
    std::string file = text_;
    file[at] ^= 1;
    EXPECT_THAT(error_of(file), HasSubstr("checksum of its head")) << at;
  }
  std::string file = text_;
  file[file.size() - 3] ^= 1;
  EXPECT_THAT(error_of(file), HasSubstr("checksum of its header"));
}

TEST_F(PackedFiles, VerifyFindsEveryChangedPiece) {
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    std::string file = text_;
    const std::uint64_t at = PackedFile(path_).pieces()[i].at;
    file[static_cast<std::size_t>(at) + data_[i].size() - 1] ^= 4;
    const auto path = dir_.path() / "changed";
    test::write_file(path, file);
    const PackedFile changed(path);
    EXPECT_THAT(test::message_of<ModelError>([&] { changed.verify(); }),
                HasSubstr(pieces_[i].names[0] + ": expected bytes of another checksum"));
  }
}

TEST_F(PackedFiles, HeadsThatLieAreRefused) {
  for (const std::uint64_t lie : {std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    EXPECT_THAT(error_of(with_head(text_, [&](auto& file) { put_number(file, kHeaderAt, lie); })),
                HasSubstr("found it outside"));
    EXPECT_THAT(
        error_of(with_head(text_, [&](auto& file) { put_number(file, kHeaderBytesAt, lie); })),
        HasSubstr("found it outside"));
  }
}

TEST_F(PackedFiles, PiecesThatLieAreRefused) {
  const auto set = [](const char* field, const json& value) {
    return [=](json& piece) { piece[field] = value; };
  };
  const std::uint64_t end = text_.size();
  for (const std::uint64_t at :
       {end / 64 * 64, end + 64, std::uint64_t{1} << 60, ~std::uint64_t{63}})
    EXPECT_THAT(error_of_piece(1, set("at", at / 64 * 64)), HasSubstr("within the file")) << at;
  EXPECT_THAT(error_of_piece(1, set("at", 65)), HasSubstr("expected whole lines"));
  EXPECT_THAT(error_of_piece(1, set("at", "x")), HasSubstr("piece 1: "));
  EXPECT_THAT(error_of_piece(1, set("shape", {20, 9, 1 << 22})), HasSubstr("within the file"));
  EXPECT_THAT(error_of_piece(1, set("shape", {20, 9, (1 << 22) + 1})), HasSubstr("from 1 to 2^22"));
  EXPECT_THAT(error_of_piece(1, set("shape", {20, 0, 100})), HasSubstr("from 1 to 2^22"));
  EXPECT_THAT(error_of_piece(1, set("shape", {20, -9, 100})), HasSubstr("from 1 to 2^22"));
  EXPECT_THAT(error_of_piece(1, set("shape", {20, 100})), HasSubstr("rows of each matrix"));
  EXPECT_THAT(error_of_piece(1, set("names", json::array())), HasSubstr("expected names"));
  EXPECT_THAT(error_of_piece(1, set("types", {"int9"})), HasSubstr("found int9"));
  EXPECT_THAT(error_of_piece(1, set("types", {"q4_k"})), HasSubstr("k of whole blocks"));
  EXPECT_THAT(error_of_piece(1, set("types", {"f32"})), HasSubstr("within the file"));
  EXPECT_THAT(error_of_piece(1, set("form", "other")), HasSubstr("expected a form"));
  EXPECT_THAT(error_of_piece(0, set("shape", {1 << 30, 1 << 30, 1 << 30})), HasSubstr("2^60"));
  EXPECT_THAT(error_of_piece(0, set("shape", {-5})), HasSubstr("2^60"));
  EXPECT_THAT(error_of_piece(0, set("types", {"int8"})), HasSubstr("found int8"));
  EXPECT_THAT(error_of_piece(2, set("names", {"gate", "up"})), HasSubstr("gate, up and down"));
  EXPECT_THAT(error_of_piece(2, set("types", {"int4"})), HasSubstr("gate, up and down"));
  EXPECT_THAT(error_of_piece(2, [](json& piece) { piece.erase("shape"); }), HasSubstr("piece 2: "));
  EXPECT_THAT(error_of_piece(3, set("names", {"norm"})), HasSubstr("one piece of norm, found two"));
  EXPECT_THAT(error_of(with_header([](json& header) { header.erase("weights"); })),
              HasSubstr("header"));
  EXPECT_THAT(error_of(with_header([](json& header) { header["weights"]["type"] = "int9"; })),
              HasSubstr("expected a type of weights"));
  EXPECT_THAT(error_of(with_text("[")), HasSubstr("header"));
  EXPECT_THAT(error_of(with_text("3")), HasSubstr("header"));
}

TEST_F(PackedFiles, AreNotWrittenOver) {
  EXPECT_THAT(test::message_of<Error>([&] { PackedFileWriter(path_, {}); }),
              HasSubstr("cannot be created"));
  EXPECT_EQ(test::read_file(path_), text_);
}

}  // namespace
}  // namespace ferry
