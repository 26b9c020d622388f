package cli

import (
	"fmt"
	"math"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/task"
)

// sizeFlag is a number of bytes as a quantity of Kubernetes, such as 512Mi (powers of 1024)
// or 4G (powers of 1000). 0 means that there is none.
type sizeFlag struct {
	bytes int64
	// least is the least value that is accepted.
	least int64
}

var _ pflag.Value = (*sizeFlag)(nil)

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	q, err := resource.ParseQuantity(text)
	if err == nil && !strings.ContainsAny(text, "0123456789") {
		err = resource.ErrFormatWrong // ParseQuantity reads a unit without a number as 0
	}
	if err != nil {
		return fmt.Errorf("want a quantity of bytes, such as 512Mi or 4G: %w", err)
	}
	n := q.Value() // rounded up
	switch {
	case q.CmpInt64(n) != 0, n == math.MaxInt64: // ParseQuantity cuts what is larger
		return fmt.Errorf("%s is not a whole number of bytes, or too large", text)
	case n < s.least:
		return fmt.Errorf("want %s or more", resource.NewQuantity(s.least, resource.BinarySI))
	}
	s.bytes = n
	return nil
}

// String implements pflag.Value. With "" the help shows no default.
func (s *sizeFlag) String() string {
	if s.bytes == 0 {
		return ""
	}
	return resource.NewQuantity(s.bytes, resource.BinarySI).String()
}

// Type implements pflag.Value.
func (s *sizeFlag) Type() string { return "size" }

// addRateLimit adds --rate-limit.
func addRateLimit(flags *pflag.FlagSet, s *sizeFlag) {
	s.least = task.MinRateLimit
	flags.Var(s, "rate-limit", "read or write at most this `size` a second on the device, such as 50Mi")
}

// formatBytes renders a size for people. A negative one is 0.
func formatBytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
