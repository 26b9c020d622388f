package chaos

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDraw(t *testing.T) {
	mix, err := ParseMix("")
	require.NoError(t, err)
	require.Equal(t, Draw(7, 3, 6, mix), Draw(7, 3, 6, mix), "a round can be repeated")
	require.NotEqual(t, Draw(7, 3, 6, mix), Draw(8, 3, 6, mix))
	hit, kinds := map[string]bool{}, map[string]bool{}
	for seed := range uint64(300) {
		r := Draw(seed, 3, 6, mix)
		require.Len(t, r.Faults, 6)
		require.True(t, slices.ContainsFunc(r.Operations, func(o Operation) bool { return o.Kind == Backup || o.Kind == InPlace }))
		for _, o := range r.Operations {
			kinds[o.Kind] = true
			require.False(t, o.Kind == Backup && slices.ContainsFunc(r.Operations, func(other Operation) bool {
				return other.Kind == InPlace && other.App == o.App
			}), "a stopped application is not backed up")
		}
		for _, f := range r.Faults {
			hit[f.Name] = true
			require.LessOrEqual(t, f.At, earliest+span)
		}
	}
	require.Len(t, kinds, 4)
	for name, weight := range mix {
		require.Equal(t, weight > 0, hit[name], name)
	}
}

func TestParseMix(t *testing.T) {
	mix, err := ParseMix("worker=3,s3-cut,worker-cancel=0")
	require.NoError(t, err)
	require.Equal(t, 3, mix["worker-kill"])
	require.Equal(t, 1, mix["s3-cut"])
	require.Zero(t, mix["worker-cancel"])
	require.Zero(t, mix["s3-kill"])
	for text, message := range map[string]string{
		"worker=x":      `weight "x" of worker`,
		"worker=-1":     `weight "-1" of worker`,
		"disk":          `there is no fault "disk", only worker-kill`,
		"worker-kill=0": "no fault is left",
	} {
		_, err := ParseMix(text)
		require.ErrorContains(t, err, message, text)
	}
}
