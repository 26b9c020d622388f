// Package rehome hands VolumeSnapshots over to operations, and keeps some of them for
// their backups.
//
// The origin is a VolumeSnapshot with its content in the namespace of an application.
// Somebody else owns it, and may delete it at any time, with a group or with the
// namespace. The pair replaces it: a static VolumeSnapshotContent with the handle of
// the same storage snapshot, and a VolumeSnapshot in Velero's namespace. A pair
// belongs to one operation, or, once it is retained, to one backup:
//
//	        Ensure                Keep                 ReleaseRetained
//	origin ───────▶ operation's ───────▶ retained pair ───────────────▶ gone
//	   │            pair                    ▲     │
//	   │             │                      └─────┘
//	   │             │ Release              Rebuild, if the pair was deleted
//	   │             ▼
//	   └──────────▶ gone
//	 volumesnapshot.Release
//
// Ensure takes these steps, each of which can be repeated:
//
//  1. Protect the origin's content: deletion policy Retain, label of the operation.
//     The storage snapshot is safe.
//  2. Create the pair's content, with policy Delete and with the facts about the
//     snapshot as annotations. The storage snapshot has two names.
//  3. Create the pair's VolumeSnapshot. It can be a data source.
//  4. Delete the origin's VolumeSnapshot and content. The storage snapshot has one
//     name again.
//
// At any moment, at most one content with policy Delete has the handle, and only the
// release of the pair deletes the storage snapshot.
//
// Words: the retention is the rule (auto, always, never); to protect is to set the
// origin's policy to Retain; to keep is to pass a pair from its operation to its
// backup; a pair that was kept is retained.
package rehome

import (
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// Rehomer creates, keeps and releases the pairs of one Velero.
type Rehomer struct {
	client    client.Client
	reader    client.Reader
	contents  content.Client
	groups    groupapi.Keeper
	namespace string
}

// New returns a Rehomer for the Velero in the namespace. reader answers from the API
// server: a stale answer would call a VolumeSnapshot vanished that was re-homed a
// moment ago.
func New(c client.Client, reader client.Reader, namespace string) Rehomer {
	return Rehomer{client: c, reader: reader, contents: content.New(c, reader), groups: groupapi.NewKeeper(c, reader), namespace: namespace}
}

// keyOf is the key of a VolumeSnapshot in Velero's namespace.
func (r Rehomer) keyOf(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: r.namespace, Name: name}
}
