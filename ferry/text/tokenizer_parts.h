// The parts of a Tokenizer. For tokenizer.cpp (uses them) and tokenizer_json.cpp (builds them)
// only.
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ferry/text/added_tokens.h"
#include "ferry/text/bpe.h"
#include "ferry/text/normalizer.h"
#include "ferry/text/pre_tokenizer.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

struct TokenizerParts {
  TokenizerParts(std::string f, PreTokenizer pre)
      : file(std::move(f)), pre_tokenizer(std::move(pre)) {}

  std::string file;
  Normalizer normalizer;
  AddedTokenMatcher raw_tokens;         // looked for in the text as given
  AddedTokenMatcher normalized_tokens;  // looked for after normalisation
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  bool ignore_merges = false;                           // a word that is a token needs no merging
  std::unordered_map<std::string, std::int32_t> words;  // as BPE sees them; for ignore_merges only
  std::string dropped_prefix;                           // what a decoded text does not begin with
  std::vector<std::int32_t> prefix, suffix;             // around every text

  std::unordered_map<std::string, std::int32_t> ids;  // by the token as written
  std::vector<std::string> bytes;                     // by id; what it decodes to
  std::vector<bool> present;                          // by id
  std::unordered_set<std::int32_t> special;
};

/// Enters a token: what the vocabulary calls it, and the bytes that it decodes to. Throws
/// ModelError when the id or the token is taken.
void place_token(TokenizerParts& parts,
                 std::int32_t id,
                 const std::string& token,
                 std::string bytes);

/// Enters an added token, which place_token() has placed.
void match_added_token(TokenizerParts& parts, const AddedToken& token);

/// Byte-level BPE writes every byte as a letter: printable Latin-1 as itself, the rest from U+0100
/// on. The bytes of a token written so; empty when a character stands for no byte.
std::optional<std::string> bytes_of_letters(std::string_view token);
/// The letter for one byte, in UTF-8.
std::string letter_of_byte(unsigned char byte);

}  // namespace ferry
