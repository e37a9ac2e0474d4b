// Options that take the name of a picture.
#pragma once

#include <string>

namespace ferry {

/// A check of CLI11: what is wrong with the name, or nothing. Pictures are SVG whatever they are
/// called, and a viewer believes the name.
inline std::string svg_name_error(const std::string& path) {
  if (path.ends_with(".svg")) return {};
  return path + ": pictures are SVG; choose a name that ends in .svg";
}

}  // namespace ferry
