// Package groupsnapshot takes VolumeSnapshots of several PVCs at one instant, and
// releases them. The life of a group:
//
//	Create          the member PVCs get a label of the group, the stamp; the
//	                VolumeGroupSnapshot selects on it
//	WaitForMember   the snapshot controller creates a VolumeSnapshot per member, and
//	                the storage cuts all of them at once
//	GiveUp          instead, if the storage does not do that in time: the other members
//	                stop waiting
//	                (package rehome takes each member over for its upload)
//	Release         stamps, VolumeGroupSnapshot, content and members are deleted
//
// Groups.Open returns the handle of a group, which knows the name of the group and, by
// discovery, the version of the API. A cluster that does not serve the API has no
// groups, but it can still have the stamps and members of one. There, Groups.Find and
// Group.Release work, and all other methods return ErrNotServed.
//
// The objects of the API are read as unstructured: all versions spell the fields that
// are needed the same.
package groupsnapshot
