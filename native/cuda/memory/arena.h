// arena.h - one allocation handed out in parts.
#ifndef HOTCOLD_CUDA_ARENA_H
#define HOTCOLD_CUDA_ARENA_H

#include <cstdint>

namespace hotcold {

// Hands out parts of one allocation; with no base it only counts.
class Arena {
  public:
    explicit Arena(char *base = nullptr) : base_(base) {}
    template <class T> T *take(int64_t count) {
        const int64_t at = used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
        return base_ ? reinterpret_cast<T *>(base_ + at) : nullptr;
    }
    // Room for a tensor that the model may not have.
    float *like(const float *from, int64_t count) {
        return from ? take<float>(count) : nullptr;
    }
    int64_t used() const {
        return used_;
    }

    void go_to(int64_t at) { // what is taken from here on shares memory with what was behind
        used_ = at;
    }

  private:
    char *base_;
    int64_t used_ = 0;
};

} // namespace hotcold
#endif
