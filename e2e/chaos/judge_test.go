package chaos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

func TestCheckImages(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 30, 12, minute, 0, 0, time.UTC) }
	uploadOf := func(name, image string, start int) kit.Object {
		return kit.Object{
			Kind: "DataUpload", Metadata: kit.Metadata{Name: name, UID: name}, Spec: kit.Spec{SourceNamespace: "shop"},
			Status: kit.Status{Phase: "Completed", SnapshotID: image, StartTimestamp: at(start), CompletionTimestamp: at(start + 2)},
		}
	}
	upload, beside, after := uploadOf("uid", "image", 1), uploadOf("beside", "image-2", 2), uploadOf("after", "image-3", 4)
	image := func(id, operation, incomplete string) kit.KopiaSnapshot {
		return kit.KopiaSnapshot{ID: id, IncompleteReason: incomplete, Tags: map[string]string{"tag:blockmover.io/operation-id": operation}}
	}
	for name, c := range map[string]struct {
		images []kit.KopiaSnapshot
		wrong  []string
		others []kit.Object
	}{
		"one":                         {[]kit.KopiaSnapshot{image("image", "uid", "")}, nil, nil},
		"two of one operation":        {[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "uid", "")}, []string{"of one operation uid"}, nil},
		"of nobody":                   {[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "gone", "")}, []string{"is of no DataUpload"}, nil},
		"incomplete of one that runs": {[]kit.KopiaSnapshot{image("other", "gone", "checkpoint")}, nil, nil},
		"incomplete of one that has ended": {
			[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "uid", "checkpoint")},
			[]string{"which is Completed"},
			[]kit.Object{beside, after},
		},
		"incomplete, and nobody could remove it yet": {
			[]kit.KopiaSnapshot{image("image", "uid", ""), image("other", "uid", "checkpoint")}, nil, []kit.Object{beside},
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := &judge{result: &Result{}}
			j.checkImages(&application{namespace: "shop"}, c.images, append(c.others, upload))
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
