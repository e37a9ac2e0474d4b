// What libferry.so shows to others. Everything else of it is hidden.
#pragma once

/// Stands before a class or function of the public interface that has code in the library.
#define FERRY_API __attribute__((visibility("default")))
