#include "cpu/auction.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace vqk {
namespace {

struct Offer {
    double paid;
    std::int64_t row;
};

// whether a place goes to the first of two offers; of equal ones, to the first row
bool before(const Offer& a, const Offer& b) {
    return a.paid > b.paid || (a.paid == b.paid && a.row < b.row);
}

struct Bid {
    std::int64_t code;
    Offer offer;
};

// what a row without a place offers, and whether that may be told from what is listed
bool bid(const Auction& call, std::int64_t row, Bid& found) {
    const std::int32_t* codes = call.codes + row * call.listed;
    const double* cost = call.cost + row * call.listed;
    const auto at = [&](std::int64_t place) { return cost[place] + call.prices[codes[place]]; };
    std::int64_t best = 0;
    double lowest = at(0), second = call.others[row];
    for (std::int64_t place = 1; place < call.listed; ++place) {
        const double total = at(place);
        if (total < lowest) {
            second = std::min(second, lowest);
            lowest = total;
            best = place;
        } else {
            second = std::min(second, total);
        }
    }
    if (lowest > call.others[row]) return false;
    found = {codes[best], {call.prices[codes[best]] + (second - lowest) + call.step, row}};
    return true;
}

// who has the places of each code: heaps, the lowest offer on top
class Holders {
  public:
    explicit Holders(const Auction& call) : call_(call), first_(call.k + 1), heaps_(call.k), made_(call.k) {
        for (std::int64_t row = 0; row < call.n; ++row) {
            if (call.label[row] >= 0) ++first_[call.label[row] + 1];
        }
        std::partial_sum(first_.begin(), first_.end(), first_.begin());
        rows_.resize(first_.back());
        std::vector<std::int64_t> next(first_);
        for (std::int64_t row = 0; row < call.n; ++row) {
            if (call.label[row] >= 0) rows_[next[call.label[row]]++] = row;
        }
    }

    std::vector<Offer>& of(std::int64_t code) {
        std::vector<Offer>& heap = heaps_[code];
        if (made_[code]) return heap;
        made_[code] = true;
        for (std::int64_t at = first_[code]; at < first_[code + 1]; ++at) {
            heap.push_back({call_.paid[rows_[at]], rows_[at]});
        }
        std::make_heap(heap.begin(), heap.end(), before);
        return heap;
    }

  private:
    const Auction& call_;
    std::vector<std::int64_t> first_, rows_;
    std::vector<std::vector<Offer>> heaps_;
    std::vector<bool> made_;
};

}  // namespace

void auction_rounds(const Auction& call) {
    std::vector<std::int64_t> free;
    for (std::int64_t row = 0; row < call.n; ++row) {
        if (call.label[row] < 0) free.push_back(row);
    }
    Holders holders(call);
    std::vector<Bid> bids;
    while (std::int64_t(free.size()) > call.few) {
        bids.resize(free.size());
        for (std::size_t i = 0; i < free.size(); ++i) {
            if (!bid(call, free[i], bids[i])) return;
        }
        free.clear();
        for (const Bid& each : bids) {
            auto& heap = holders.of(each.code);
            heap.push_back(each.offer);
            std::push_heap(heap.begin(), heap.end(), before);
            call.label[each.offer.row] = each.code;
            call.paid[each.offer.row] = each.offer.paid;
            if (std::int64_t(heap.size()) <= call.capacity) continue;
            std::pop_heap(heap.begin(), heap.end(), before);
            call.label[heap.back().row] = -1;
            free.push_back(heap.back().row);
            heap.pop_back();
        }
        for (const Bid& each : bids) {
            const auto& heap = holders.of(each.code);
            if (std::int64_t(heap.size()) == call.capacity) call.prices[each.code] = heap.front().paid;
        }
    }
}

}  // namespace vqk
