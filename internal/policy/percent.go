package policy

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Percent is the share of the unchanged chunks that an audit reads, from 0 (no audit) to 100.
type Percent float64

// DefaultAudit is the share if nobody asks for one.
const DefaultAudit Percent = 1

// ParsePercent reads a share such as "1%" or "0.5%". "0" is "0%".
func ParsePercent(text string) (Percent, error) {
	number, isShare := strings.CutSuffix(text, "%")
	p, err := strconv.ParseFloat(number, 64)
	if err != nil || !isShare && text != "0" || !(p >= 0 && p <= 100) || math.Signbit(p) {
		return 0, errors.New("want a percentage from 0% to 100% such as 1%, or 0 for none")
	}
	return Percent(p), nil
}

// String is the inverse of ParsePercent.
func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'f', -1, 64) + "%" }
