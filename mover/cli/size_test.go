package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSizes: a size means the same on the command line and in the configuration.
func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "64k": 64_000, "64Ki": 64 << 10, "50M": 50_000_000, "50Mi": 50 << 20, "4G": 4_000_000_000, "4Gi": 4 << 30,
		"1Ti": 1 << 40, "1.5Gi": 3 << 29, "1e9": 1_000_000_000, "8388607Ti": 8388607 << 40,
	} {
		s := sizeFlag{}
		require.NoError(t, s.Set(text), text)
		require.Equal(t, want, s.bytes, text)
	}
	for _, text := range []string{
		"", "G", "-1", "1 G", " 1G", "1g", "1MB", "64K", "512MiB", "4GiB", "1iB", "1i", "1B", "0x10", "0.5", "1m", "8388608Ti", "9223372036854775808",
	} {
		s := sizeFlag{}
		require.Error(t, s.Set(text), text)
		require.Zero(t, s.bytes)
	}
}

func TestSizeFlag(t *testing.T) {
	s := sizeFlag{least: 1 << 20}
	require.Empty(t, s.String())
	require.ErrorContains(t, s.Set("1023Ki"), "want 1Mi or more")
	require.ErrorContains(t, s.Set("much"), "want a quantity of bytes")
	require.Zero(t, s.bytes)
	require.NoError(t, s.Set("1Mi"))
	require.Equal(t, "1Mi", s.String())
}

// FuzzSize: a size that is accepted is shown as one that means the same.
func FuzzSize(f *testing.F) {
	f.Add("1.5Gi")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		s := sizeFlag{}
		if s.Set(text) != nil {
			require.Zero(t, s.bytes)
			return
		}
		require.GreaterOrEqual(t, s.bytes, int64(0))
		if s.bytes == 0 {
			return // it is shown as none
		}
		again := sizeFlag{}
		require.NoError(t, again.Set(s.String()), s.String())
		require.Equal(t, s.bytes, again.bytes)
	})
}
