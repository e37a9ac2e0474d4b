// Forms in which checkpoints store quantised matrices. One form is one file in formats/, which
// exports a FormatEntry, and one line in CMakeLists.txt; docs/checkpoints.md, "Adding a stored
// format".
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/quant_spec.h"
#include "ferry/checkpoint/stored_matrix.h"
#include "ferry/checkpoint/tensor_source.h"

namespace ferry {

class ConfigReader;

/// A matrix that is wanted.
struct MatrixPlace {
  std::string name;  ///< of its tensor where it is plain: "x.weight", or that of all experts
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::optional<StackPlace> stack = {};  ///< where all experts' lie in one tensor
};

/// A tensor that a matrix is made of.
struct StoredPart {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string_view type = {};  ///< as the source writes it; empty: F32, BF16 or F16
};

/// A form as one checkpoint uses it: what its quantization_config says is in the object. Threads:
/// const and safe for several.
class StoredFormat {
 public:
  StoredFormat() = default;
  virtual ~StoredFormat() = default;
  StoredFormat(const StoredFormat&) = delete;
  StoredFormat& operator=(const StoredFormat&) = delete;

  /// For messages: "mxfp4".
  virtual std::string_view name() const = 0;

  /// What the codes of its matrices, or of most of them, stand for.
  virtual QuantSpec spec() const = 0;

  /// Whether the matrix is stored in this form; else it is plain.
  virtual bool stores(const TensorSource& source, const MatrixPlace& place) const = 0;

  /// The tensors that such a matrix is made of, which are then looked up and checked.
  virtual std::vector<StoredPart> parts(const TensorSource& source,
                                        const MatrixPlace& place) const = 0;

  /// The matrix in those, one view for each part, of exactly the shapes and types asked for. Values
  /// in them are not to be trusted: indices are checked here. Throws ModelError.
  virtual StoredMatrix assemble(const MatrixPlace& place,
                                std::span<const TensorView> parts) const = 0;

  /// Whether experts' matrices of this form lie in tensors of all; else each has its own.
  virtual bool stacks_experts() const { return false; }

  /// What must divide the columns of its matrices.
  virtual std::int64_t column_unit() const { return 1; }

  /// What whoever runs the model should know of how it is held, a line; may be empty.
  virtual std::string note() const { return {}; }

  /// Whether matrices are of several types, each to be held as it is where weights can be; the rest
  /// becomes elements.
  virtual bool holds_each() const { return false; }

  /// The type of weights that holds its codes as they are; absent: they become elements.
  virtual std::optional<WeightType> held() const { return weight_type_of(spec()); }
};

/// A row of the table.
struct FormatEntry {
  std::string_view method;  ///< config.json's quantization_config.quant_method
  /// Reads the rest of quantization_config. Throws ModelError for what is not supported.
  std::unique_ptr<StoredFormat> (*make)(const ConfigReader& quantization);
  std::optional<WeightType> written_for = {};  ///< `ferry quantize --weights` writes this form
  const char* written_config = nullptr;        ///< with this quantization_config
};

/// All of them, in the order in which errors list them.
std::span<const FormatEntry> stored_formats();

/// The form that a quantization_config describes. Throws ModelError naming field, what was expected
/// and what was found.
std::unique_ptr<StoredFormat> read_stored_format(
    const ConfigReader& quantization, std::span<const FormatEntry> table = stored_formats());

/// A form to write, and the quantization_config that says so.
struct WrittenFormat {
  std::unique_ptr<StoredFormat> format;
  std::string config;
};

/// Without a format when none is written for that type.
WrittenFormat written_format(WeightType type);

/// The matrix in whatever form it is stored; `format` may be null. Throws ModelError naming file,
/// tensor, what was expected and what was found. REQUIRES: format.column_unit() divides its columns
/// where it is stored in that form.
StoredMatrix find_matrix(const TensorSource& source,
                         const StoredFormat* format,
                         const MatrixPlace& place);

}  // namespace ferry
