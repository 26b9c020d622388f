// Package kubevirt reads and makes the objects of KubeVirt: VirtualMachines, and the
// VirtualMachineBackups and trackers of its backup API. It decides what they mean.
//
// The objects are read unstructured. The backup API is v1alpha1, and its conditions have
// changed incompatibly:
//
//	KubeVirt  has ended       succeeded                                          failed
//	1.8       Done=True       reason "Successfully completed …Backup"            any other reason
//	1.9       —               Complete=True                                      Failed=True
//
// Neither can be believed as it is. In 1.9, Complete=True was seen on a VirtualMachineBackup
// whose files another one had written. So a success counts only with its evidence: a type, a
// checkpoint of its own name, and volumes.
//
// An object without conditions may stay so for ever. KubeVirt writes why into an event of the
// VirtualMachineInstance, or nowhere. Whoever waits needs a deadline.
//
// Source: kubevirt.io/api/backup/v1alpha1, and what KubeVirt 1.8.2 and 1.9.0 were seen to do.
package kubevirt
