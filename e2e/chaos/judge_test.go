package chaos

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

func TestCheckImages(t *testing.T) {
	upload := kit.Object{Kind: "DataUpload", Metadata: kit.Metadata{Name: "u", UID: "uid"}, Status: kit.Status{Phase: "Completed", SnapshotID: "image"}}
	image := func(id, operation, incomplete string) kit.KopiaSnapshot {
		return kit.KopiaSnapshot{ID: id, IncompleteReason: incomplete, Tags: map[string]string{"tag:blockmover.io/operation-id": operation}}
	}
	for name, c := range map[string]struct {
		images []kit.KopiaSnapshot
		wrong  []string
	}{
		"one":                         {[]kit.KopiaSnapshot{image("image", "uid", "")}, nil},
		"two of one operation":        {[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "uid", "")}, []string{"of one operation uid"}},
		"of nobody":                   {[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "gone", "")}, []string{"is of no DataUpload"}},
		"incomplete of one that runs": {[]kit.KopiaSnapshot{image("other", "gone", "checkpoint")}, nil},
		"incomplete of one that has ended": {
			[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "uid", "checkpoint")},
			[]string{"which is Completed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := &judge{result: &Result{}}
			j.checkImages(&application{namespace: "shop"}, c.images, []kit.Object{upload})
			require.Len(t, j.result.Wrong, len(c.wrong))
			for i := range c.wrong {
				require.Contains(t, j.result.Wrong[i], c.wrong[i])
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	s := Summarize([]Result{
		{Hits: []Hit{{}, {Missed: "nothing"}}, Ended: []Ended{
			{Kind: Backup, Phase: "Completed", Volumes: []EndedVolume{{Phase: "Completed"}, {Phase: "Completed", Attempts: 2, Read: 10, ReadBefore: 5}}},
			{Kind: Restore, Phase: "Failed", Volumes: []EndedVolume{{Phase: "Failed", Attempts: 3, Read: 1, ReadBefore: 5}}},
		}},
		{Wrong: []string{"it"}},
	})
	require.Equal(t, Summary{
		Rounds: 2, Wrong: 1, Faults: 1, Missed: 1,
		Backups: map[string]int{"Completed": 1}, Restores: map[string]int{"Failed": 1}, Volumes: map[string]int{"Completed": 2, "Failed": 1},
		Again: 2, Zero: 1,
	}, s)
}
