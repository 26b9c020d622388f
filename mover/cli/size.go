package cli

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/blockmover/blockmover/internal/device"
)

// sizeFlag is a number of bytes, such as 512MiB or 4G; 0 is none given.
type sizeFlag struct {
	bytes int64
	least int64
}

var _ pflag.Value = (*sizeFlag)(nil)

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	if n < s.least {
		return fmt.Errorf("want %s or more", formatBytes(s.least))
	}
	s.bytes = n
	return nil
}

// String implements pflag.Value; "" keeps a default out of the help.
func (s *sizeFlag) String() string {
	if s.bytes == 0 {
		return ""
	}
	return formatBytes(s.bytes)
}

// Type implements pflag.Value.
func (s *sizeFlag) Type() string { return "size" }

// addRateLimit adds --rate-limit.
func addRateLimit(flags *pflag.FlagSet, s *sizeFlag) {
	s.least = device.MinRate
	flags.Var(s, "rate-limit", "read or write at most this `size` a second on the device, such as 50MiB")
}

var sizePattern = regexp.MustCompile(`^([0-9]+)([KMGT]?)(i|iB)?$`)

// parseSize reads a whole number with a unit: K, M, G or T, which are powers of
// 1024 with or without "iB" after them, or none for bytes.
func parseSize(text string) (int64, error) {
	parts := sizePattern.FindStringSubmatch(text)
	if len(parts) == 0 || parts[2] == "" && parts[3] != "" {
		return 0, errors.New("want a whole number with a unit, such as 512MiB or 4G (both powers of 1024)")
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	shift := 10 * (strings.Index("KMGT", parts[2]) + 1)
	if parts[2] == "" {
		shift = 0
	}
	if err != nil || n > math.MaxInt64>>shift {
		return 0, errors.New("that is more than there can be")
	}
	return n << shift, nil
}
