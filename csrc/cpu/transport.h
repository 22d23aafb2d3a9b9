// Rows into codes that hold so many each, at the least cost (vqkernels/kmeans/transport.py has the maths).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace vqk {

struct TransportProblem {
    const std::int32_t* codes;  // [N, L] that a row may take
    const double* cost;         // [N, L] of taking them
    std::int64_t n, listed, k, capacity;
    // [N] in place: where in its list a row is; -1: nowhere; ~place once it is somewhere: there, and its list is
    // another
    std::int32_t* place;
    std::int64_t* spare;  // [K] in place: places that nobody takes; K * capacity - N together
    double* prices;       // [K] in place
    // [K] written when lists lead from a code that holds too much to no room: whether they lead to this one
    std::uint8_t* reached;
};

enum class Transported {
    kPlaced,   // no code holds more than it may
    kStopped,  // not yet: so many rounds were run
    kCutOff    // no list leads to where there is room
};

// The rows on their way, from call to call; the problem's arrays are the caller's and stay.
class Transport {
  public:
    explicit Transport(const TransportProblem& problem);

    Transported run(std::int64_t rounds);

  private:
    // a row that may move, at what cost beyond the prices, to which entry of its list
    struct Entry {
        double key;
        std::int32_t row, place;
    };

    // the way from a code to another that its rows list, and which of them costs least to move (-1: none)
    struct Edge {
        double key;
        std::int32_t to, row;
    };

    // all edges of a code, by where they lead, and for each a heap of all rows that may move, that one on top; rows
    // that are gone leave the heap when they come to its top
    struct Edges {
        std::vector<Edge> first;
        std::vector<std::vector<Entry>> heaps;
    };

    // how a path comes to a code: in how many steps, from which, by which row, at what cost beyond the prices
    struct Step {
        std::int32_t number, from, row;
        double key;
    };

    static bool after(const Entry& a, const Entry& b);
    std::int64_t code(std::int64_t row, std::int64_t place) const;
    double cost(std::int64_t row, std::int64_t place) const;
    double total(std::int64_t row, std::int64_t place) const;
    std::int32_t cheapest(std::int64_t row) const;
    std::size_t edge_to(std::int64_t from, std::int64_t to);
    void refresh(std::int64_t from, std::size_t edge);
    void move(std::int64_t row, std::int32_t place);
    void leave(std::int64_t row);
    void place_rows();
    void enter_all(const std::int32_t* rows, std::int64_t count);
    std::int64_t search(std::int64_t source);
    void relax(std::int64_t to, double distance, const Step& step);
    void raise(double reach);
    bool push(std::int64_t code);
    Transported drain(std::int64_t source, std::int64_t& rounds);

    TransportProblem problem_;
    double nothing_;                     // what costs are equal by
    std::vector<std::int32_t> label_;    // [N]
    std::vector<std::int32_t> changed_;  // rows that may be better off by their new lists
    std::vector<Edges> edges_;           // [K]
    std::vector<std::int64_t> over_;     // [K] rows and spare places that a code holds beyond its own places
    std::vector<double> distance_;
    std::vector<Step> step_;
    std::vector<std::uint8_t> settled_;
    std::vector<std::int64_t> met_, order_;  // codes that a path came to, and in the order in which that was settled
    std::vector<std::pair<double, std::int64_t>> queue_;
    std::vector<std::int32_t> at_;  // [K] which edge of a code leads there; -1: none
};

}  // namespace vqk
