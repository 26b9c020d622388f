package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "64K": 64 << 10, "64Ki": 64 << 10, "512MiB": 512 << 20, "4G": 4 << 30, "4GiB": 4 << 30,
		"1T": 1 << 40, "8388607T": 8388607 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		got, err := parseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{
		"", "G", "-1", "+1", "1.5G", "1 G", " 1G", "1g", "1MB", "1iB", "1i", "1B", "0x10", "1GiBs", "8388608T", "9223372036854775808", "1e9",
	} {
		_, err := parseSize(text)
		require.Error(t, err, text)
	}
}

func TestSizeFlag(t *testing.T) {
	s := sizeFlag{least: 1 << 20}
	require.Empty(t, s.String())
	require.ErrorContains(t, s.Set("1023K"), "want 1.0 MiB or more")
	require.Error(t, s.Set("much"))
	require.Zero(t, s.bytes)
	require.NoError(t, s.Set("1M"))
	require.Equal(t, "1.0 MiB", s.String())
}
